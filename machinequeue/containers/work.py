"""What goes into a container's machine, and what comes out. Pure."""

import base64
from collections.abc import Mapping
from pathlib import PurePosixPath
from shlex import quote
from typing import Any

from machinequeue.machines.schema import ExecResult
from machinequeue.payload import scrub

WORK = "/tmp/work"  # noqa: S108 - in a machine that is nobody else's
START = "/tmp/.start"  # noqa: S108 - the same
PLACE = ["/bin/sh"]
"""The command that takes a script on its standard input."""
LINE = 76
EXEC_KEEPS = 1024 * 1024
"""Bytes of each stream that the local Machines API answers; what has as many was probably longer."""


def script(kwargs: Mapping[str, Any]) -> str:
    """What the shell is given to make a run's files, and the program that starts its command."""
    lines = ["set -e", f"mkdir -p {WORK}", f"cd {WORK}"]
    for path, content in kwargs["files"].items():
        folder = PurePosixPath(path).parent
        coded = content.get("base64") or base64.b64encode(content.get("text", "").encode()).decode()
        lines += [f"mkdir -p {quote(f'./{folder}')}", *_decoded(coded, quote(f"./{path}"))]
    exports = [f"export {name}={quote(value)}" for name, value in kwargs["env"].items()]
    # The environment of a command cannot be given to exec, and its command line is for everybody to read.
    start = "\n".join([f"cd {WORK}", *exports, 'exec "$@"', ""])
    return "\n".join([*lines, *_decoded(base64.b64encode(start.encode()).decode(), START), ""])


def _decoded(coded: str, target: str) -> list[str]:
    pieces = [coded[begin : begin + LINE] for begin in range(0, len(coded), LINE)]
    return [f"base64 -d > {target} <<'END'", *pieces, "END"]


def command(kwargs: Mapping[str, Any]) -> list[str]:
    """The command line, once the script was run."""
    return [*PLACE, START, *kwargs["cmd"]]


def value(done: ExecResult, seconds: float, longest: int) -> dict[str, Any]:
    """The run's result: texts of at most `longest` characters and a line that says what was cut out."""
    truncated = any(len(text) > longest or len(text.encode()) >= EXEC_KEEPS for text in (done.stdout, done.stderr))
    return {
        "exit_code": exit_code(done),
        "stdout": scrub(done.stdout, longest),
        "stderr": scrub(done.stderr, longest),
        "truncated": truncated,
        "seconds": round(seconds, 3),
    }


def exit_code(done: ExecResult) -> int | None:
    """As a shell has it: 128 and the signal's number for who was killed by one."""
    return done.exit_code or (128 + done.exit_signal if done.exit_signal else done.exit_code)


def output(done: ExecResult, longest: int) -> str:
    """What the admin shows: both streams, one after the other."""
    return "".join(scrub(text, longest) for text in (done.stdout, done.stderr))
