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

from machinequeue.machines.emulator import names
from machinequeue.machines.emulator.images import Image
from machinequeue.machines.emulator.regions import REGIONS

DEFAULT_PORT = 4280
TOKEN_VARIABLE = "FLY_API_TOKEN"  # noqa: S105  # the name of a variable, not a token
SECRETS_VARIABLE = "MACHINES_EMULATOR_SECRETS"

# Of a session, of a build or of Python itself, never of an application.
SESSION_NAMES = re.compile(
    r"PATH|HOME|LANG(UAGE)?|(OLD)?PWD|SHLVL|SHELL|USER|LOGNAME|TERM|HOSTNAME|MAIL|EDITOR|VISUAL|PAGER|TMPDIR|TZ|_"
    r"|DISPLAY|COLORTERM|LS_COLORS|PS1|MFLAGS|MAKE\w*|PYTHON\w*|VIRTUAL_ENV\w*"
    r"|(FLY|LC|XDG|SSH|PYTEST|COVERAGE|UV|PIP|GIT|DBUS|LD|DYLD|MACHINES_EMULATOR)_\w*"
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


def _image(text: str) -> Image:
    try:
        return Image.from_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _app(text: str) -> str:
    if not names.is_app_name(text):
        raise argparse.ArgumentTypeError(f"an app's name may have lower-case letters, digits and dashes, not {text!r}")
    return text


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def _state_dir(text: str) -> Path:
    path = Path(text).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be made: {error.strerror}") from None
    return path


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> Options:
    """Options from the command line. Exits with a usage message on nonsense."""
    surroundings = os.environ if environment is None else environment
    given = _parser().parse_args(arguments)
    secrets = secrets_from(surroundings) if given.env_secrets else {}
    secrets |= json.loads(surroundings.get(SECRETS_VARIABLE, "{}"))
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
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m machinequeue.machines.emulator",
        description="The Machines API on loopback; every machine is a real process tree.",
    )
    add = parser.add_argument
    add(
        "--port", type=_port, default=DEFAULT_PORT, help=f"port on 127.0.0.1, 0 for a free one (default {DEFAULT_PORT})"
    )
    add("--app", action="append", type=_app, help="an app that exists from the start; may be repeated (default: app)")
    add("--token", help=f"the token that is accepted (default: ${TOKEN_VARIABLE}, else: emulator)")
    add("--image", action="append", type=_image, metavar="REF=DIR[:PYTHON]", help="an image the registry knows")
    add("--secret", action="append", type=_pair, metavar="NAME=VALUE", help="a secret of every app given by --app")
    add("--env-secrets", action="store_true", help="make the environment's own variables secrets of the apps")
    add("--region", choices=sorted(REGIONS), default="iad", help="the region of machines that ask for none")
    add("--state-dir", type=_state_dir, help="where the journal and logs are kept (default: a temporary directory)")
    add("--no-rate-limits", dest="rate_limits", action="store_false", help="never answer 429")
    add("--port-file", type=Path, help="write the port here once it accepts")
    add("--watch-stdin", action="store_true", help="end when standard input ends, that is, with the parent process")
    return parser
