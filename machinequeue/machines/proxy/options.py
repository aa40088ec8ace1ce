"""The command line of the edge."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from machinequeue.machines.emulator.loopback import TOKEN_VARIABLE, app_name, directory, port_number
from machinequeue.machines.emulator.regions import REGIONS
from machinequeue.machines.session import is_loopback

DEFAULT_PORT = 8080


@dataclass(frozen=True)
class Options:
    """What an edge is started with. Times are seconds; `port` 0 picks a free one; the token stays out of the repr."""

    api: str
    apps: tuple[str, ...]
    token: str = field(repr=False)
    state_dir: Path
    port: int = DEFAULT_PORT
    region: str = "iad"
    idle_seconds: float = 300
    patience_seconds: float = 30
    cache_seconds: float = 0.5
    grace_seconds: float = 10
    verbose: bool = False
    watch_stdin: bool = False


def seconds(text: str) -> float:
    """A time, as a type of argparse."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 < number <= 86_400:
        raise argparse.ArgumentTypeError(f"a time is a number of seconds above 0 and up to 86400, not {text!r}")
    return number


def _api(text: str) -> str:
    # In front of Fly's own API it would stop machines that others use, and could reach none of them.
    if not (text.startswith("http://") and is_loopback(text)):
        raise argparse.ArgumentTypeError(
            f"the edge works with an emulator, at an address such as http://127.0.0.1:4280, not {text!r}"
        )
    return text


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> Options:
    """Options from the command line. Exits with a usage message on nonsense."""
    surroundings = os.environ if environment is None else environment
    given = _parser().parse_args(arguments)
    return Options(
        api=given.api,
        apps=tuple(dict.fromkeys(given.app or ["app"])),
        token=surroundings.get(TOKEN_VARIABLE) or "emulator",
        state_dir=given.state_dir or Path(tempfile.mkdtemp(prefix="machines-edge-")),
        port=given.port,
        region=given.region,
        idle_seconds=given.idle_seconds,
        patience_seconds=given.patience_seconds,
        cache_seconds=given.cache_seconds,
        grace_seconds=given.grace_seconds,
        verbose=given.verbose,
        watch_stdin=given.watch_stdin,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m machinequeue.machines.proxy",
        description=f"Fly's proxy on loopback, in front of emulated machines. The token is ${TOKEN_VARIABLE}.",
    )
    add = parser.add_argument
    add("--api", type=_api, default="http://127.0.0.1:4280", help="address of the emulator (default %(default)s)")
    add("--app", action="append", type=app_name, help="an app to watch, the first for other hosts; may be repeated")
    add(
        "--port",
        type=port_number,
        default=DEFAULT_PORT,
        help="port on 127.0.0.1, 0 for a free one (default %(default)s)",
    )
    add("--region", choices=sorted(REGIONS), default="iad", help="the region of this edge (default %(default)s)")
    add("--idle-seconds", type=seconds, default=300, help="stop machines that nobody asked for so long (300)")
    add("--patience-seconds", type=seconds, default=30, help="look for a machine for so long, then 503 (30)")
    add("--cache-seconds", type=seconds, default=0.5, help="use the list of machines for so long (0.5)")
    add("--grace-seconds", type=seconds, default=10, help="wait so long for requests in flight at the end (10)")
    add("--state-dir", type=directory, help="where the journal is kept (default: a temporary directory)")
    add("--verbose", action="store_true", help="print a line for each request")
    add("--watch-stdin", action="store_true", help="end when standard input ends, that is, with the parent process")
    return parser
