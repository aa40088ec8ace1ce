"""The command line of the emulator."""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from machinequeue.machines.emulator.delays import Delays
from machinequeue.machines.emulator.images import Image
from machinequeue.machines.emulator.loopback import TOKEN_VARIABLE, app_name, directory, port_number
from machinequeue.machines.emulator.regions import REGIONS

DEFAULT_PORT = 4280
DEFAULT_SANDBOXED = ("python:*",)
SECRETS_VARIABLE = "MACHINES_EMULATOR_SECRETS"

# Of a session, of a build or of Python itself, never of an application.
SESSION_NAMES = re.compile(
    r"PATH|HOME|LANG(UAGE)?|(OLD)?PWD|SHLVL|SHELL|USER|LOGNAME|TERM|HOSTNAME|EDITOR|VISUAL|PAGER|TMPDIR|_"
    r"|DISPLAY|COLORTERM|LS_COLORS|PS1|MFLAGS|MAKEFLAGS|MAKELEVEL|MAKE_TERM(OUT|ERR)|VIRTUAL_ENV(_PROMPT)?"
    r"|PYTHON(PATH|HOME|STARTUP|SAFEPATH|HASHSEED|UNBUFFERED|DONTWRITEBYTECODE|IOENCODING|UTF8|WARNINGS|DEVMODE)"
    r"|PYTEST_(CURRENT_TEST|ADDOPTS|VERSION|XDIST_\w+)|COVERAGE_(PROCESS_START|PROCESS_CONFIG|RUN|FILE|RCFILE)"
    r"|SSH_(AUTH_SOCK|AGENT_PID|CLIENT|CONNECTION|TTY|ASKPASS)|DBUS_SESSION_BUS_ADDRESS"
    r"|LD_(LIBRARY_PATH|PRELOAD)|DYLD_(FALLBACK_)?LIBRARY_PATH|DYLD_INSERT_LIBRARIES"
    r"|(FLY|LC|XDG|MACHINES_EMULATOR)_\w*"
)


@dataclass(frozen=True)
class Options:
    """What an emulator is started with. `port` 0 picks a free one; `token` and `secrets` stay out of the repr."""

    apps: tuple[str, ...]
    images: tuple[Image, ...]
    token: str = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)
    state_dir: Path
    port: int = DEFAULT_PORT
    region: str = "iad"
    rate_limits: bool = True
    port_file: Path | None = None
    watch_stdin: bool = False
    boot_delays: Delays = field(default_factory=Delays)
    sandboxed: tuple[str, ...] = DEFAULT_SANDBOXED
    """Patterns of the images that are not ours."""


def secrets_from(environment: Mapping[str, str]) -> dict[str, str]:
    """Every variable that may be an application's own."""
    return {name: value for name, value in environment.items() if name.isidentifier() and not _is_of_the_session(name)}


def _is_of_the_session(name: str) -> bool:
    return SESSION_NAMES.fullmatch(name) is not None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError("a secret is NAME=VALUE")  # never quoted: it may hold the value
    return name, value


def _secrets(text: str) -> dict[str, str]:
    """The JSON object in the variable. Raises ValueError, which quotes no value."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f'${SECRETS_VARIABLE} must be a JSON object of strings, such as {{"NAME": "value"}}')
    for name in found:
        if not name.isidentifier():
            raise ValueError(f"a secret's name has letters, digits and underscores, not {name!r}")
    return found


def _port_file(text: str) -> Path:
    path = Path(text).absolute()
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} cannot be written: a file in a directory that exists is wanted")
    return path


def _image(text: str) -> Image:
    try:
        return Image.from_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def delays(text: str) -> Delays:
    """How long boots take, as a type of argparse."""
    try:
        return Delays.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def delays_text(text: str) -> str:
    """What `delays` can read, for a command that passes it on."""
    delays(text)
    return text


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> Options:
    """Options from the command line. Exits with a usage message on nonsense."""
    surroundings = os.environ if environment is None else environment
    parser = _parser()
    given = parser.parse_args(arguments)
    secrets = secrets_from(surroundings) if given.env_secrets else {}
    try:
        secrets |= _secrets(surroundings.get(SECRETS_VARIABLE) or "{}")
    except ValueError as error:
        parser.error(str(error))
    state_dir = given.state_dir or Path(tempfile.mkdtemp(prefix="machines-emulator-"))
    return Options(
        apps=tuple(dict.fromkeys(given.app or ["app"])),
        images=tuple(given.image or ()),
        token=given.token or surroundings.get(TOKEN_VARIABLE) or "emulator",
        secrets={**secrets, **dict(given.secret or ())},
        state_dir=state_dir.absolute(),
        port=given.port,
        region=given.region,
        rate_limits=given.rate_limits,
        port_file=given.port_file,
        watch_stdin=given.watch_stdin,
        boot_delays=given.boot_delay,
        sandboxed=() if given.no_sandbox else tuple(given.sandbox or DEFAULT_SANDBOXED),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m machinequeue.machines.emulator",
        description="The Machines API on loopback; every machine is a real process tree.",
    )
    add = parser.add_argument
    add(
        "--port",
        type=port_number,
        default=DEFAULT_PORT,
        help=f"port on 127.0.0.1, 0 for a free one (default {DEFAULT_PORT})",
    )
    add(
        "--app",
        action="append",
        type=app_name,
        help="an app that exists from the start; may be repeated (default: app)",
    )
    add("--token", help=f"the token that is accepted (default: ${TOKEN_VARIABLE}, else: emulator)")
    add("--image", action="append", type=_image, metavar="REF=DIR[:PYTHON]", help="an image the registry knows")
    add("--secret", action="append", type=_pair, metavar="NAME=VALUE", help="a secret of every app given by --app")
    add("--env-secrets", action="store_true", help="make the environment's own variables secrets of the apps")
    add("--region", choices=sorted(REGIONS), default="iad", help="the region of machines that ask for none")
    add("--state-dir", type=directory, help="where the journal and logs are kept (default: a temporary directory)")
    add("--no-rate-limits", dest="rate_limits", action="store_false", help="never answer 429")
    add(
        "--boot-delay",
        type=delays,
        default=Delays(),
        metavar="create=2..5,start=0.5",
        help="seconds a boot takes: fixed, FROM..TO, or ~MEDIAN (default: none)",
    )
    add(
        "--sandbox",
        action="append",
        metavar="PATTERN",
        help="images that are not ours, whose machines run this computer's Python in a sandbox; may be repeated "
        f"(default: {' '.join(DEFAULT_SANDBOXED)})",
    )
    add("--no-sandbox", action="store_true", help="know no images but those given by --image")
    add("--port-file", type=_port_file, help="write the port here once it accepts")
    add("--watch-stdin", action="store_true", help="end when standard input ends, that is, with the parent process")
    return parser
