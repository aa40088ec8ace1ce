"""A machine behind walls: the first process of a machine whose image is not ours. See `walls`.

Run as a program, with nothing of ours in its memory or environment:
    sandbox.py run ORDER CONTROL OUTPUT    three descriptors: a file with the order, and what `Init` wants
    sandbox.py probe ROOM PYTHON           exit status 0 when a sandbox can be made here, else a sentence
Three processes: one that says who is who in the namespaces, one that made them, and the `Init` inside.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":  # in isolation, Python does not know where it is
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from machinequeue.machines.emulator import trees, walls
from machinequeue.machines.emulator.init import IGNORED_BY_PYTHON, NOT_EXECUTABLE, Init

SAMPLE_SECONDS = 0.05
PROBE_SECONDS = 20
ERROR_DESCRIPTOR = 3
HIGHEST_DESCRIPTOR = 4096
WORDS = ("-I", "-S", __file__)


class WalledInit(Init):
    """`order` has room, shown, commands and cpus too. Everything it starts is behind the walls, and has no rights."""

    sample_seconds = SAMPLE_SECONDS

    def _place_files(self) -> int | None:
        walls.hide()
        try:
            for file in self.order["files"]:
                walls.place(file["path"], base64.b64decode(file["content"]), file["mode"])
            os.chdir(self.order["cwd"])
        except OSError as error:
            return self._complain(error, "place a file", NOT_EXECUTABLE)
        return None

    def _spawn(self, argv: list[str], environment: Mapping[str, str], standard: Sequence[int]) -> int:
        """A process behind the walls; its pid. Raises OSError."""
        # A file that the emulator opened to write must not be somebody else's to fill.
        stdin = os.open(f"/proc/self/fd/{standard[0]}", os.O_RDONLY | os.O_CLOEXEC)
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become(argv, environment, (stdin, *standard[1:]), theirs)
        os.close(stdin)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            number = pipe.read(16)
        if number:
            os.waitpid(pid, 0)
            raise OSError(int(number), os.strerror(int(number)), argv[0])
        return pid

    def _become(
        self, argv: Sequence[str], environment: Mapping[str, str], standard: Sequence[int], errors: int
    ) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            for number, descriptor in enumerate([os.dup(each) for each in (*standard, errors)]):
                os.dup2(descriptor, number + HIGHEST_DESCRIPTOR // 2, inheritable=False)
            for number in range(ERROR_DESCRIPTOR + 1):
                os.dup2(number + HIGHEST_DESCRIPTOR // 2, number, inheritable=number < ERROR_DESCRIPTOR)
            os.closerange(ERROR_DESCRIPTOR + 1, HIGHEST_DESCRIPTOR)
            for ignored in (*IGNORED_BY_PYTHON, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(ignored, signal.SIG_DFL)
            walls.narrow(self.limit, self.order["cpus"])
            os.execvpe(argv[0], list(argv), dict(environment))  # noqa: S606 - no shell is wanted
        except OSError as error:
            os.write(ERROR_DESCRIPTOR, str(error.errno or 1).encode())
        finally:
            os._exit(NOT_EXECUTABLE)


def run(order: Mapping[str, Any], inside: Callable[[], object]) -> int:
    """Call `inside` as the first process behind the walls; its exit status."""
    ready, made = os.pipe()
    named, go = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(ready)
        os.close(go)
        _in_child(lambda: _make(order, made, named, inside))
    os.close(made)
    os.close(named)
    try:
        if os.read(ready, 1):
            walls.map_users(middle)
            os.write(go, b"!")
    finally:
        os.close(go)
        os.close(ready)
        _give_away()
        status = os.waitstatus_to_exitcode(os.waitpid(middle, 0)[1])
    return status


def _make(order: Mapping[str, Any], made: int, named: int, inside: Callable[[], object]) -> int:
    walls.unshare()
    walls.die_with_parent()
    os.write(made, b"!")
    os.close(made)
    if not os.read(named, 1):
        return 1
    os.close(named)
    first = os.fork()
    if first == 0:
        _in_child(lambda: _enter(order, inside))
    _give_away()
    return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])


def _enter(order: Mapping[str, Any], inside: Callable[[], object]) -> int:
    walls.die_with_parent()
    walls.build(order["room"], order["shown"], order["commands"])
    inside()
    return 0


def _in_child(work: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        status = work()
    except Exception as error:
        where = getattr(error, "filename", None) or "unshare"
        sys.stderr.write(f"{where}: {getattr(error, 'strerror', None) or error!r}\n")
        sys.stderr.flush()
    finally:
        os._exit(status)


_KEPT: list[int] = []
"""Descriptors that are for the process inside alone."""


def _give_away() -> None:
    for descriptor in _KEPT:
        os.close(descriptor)


def _run(order_file: int, control: int, output: int) -> int:
    trees.rename("mq-sandbox")
    with os.fdopen(order_file, "rb") as file:
        order = json.load(file)
    for descriptor in (control, output):
        os.set_inheritable(descriptor, False)
        _KEPT.append(descriptor)
    return run(order, lambda: WalledInit(order, socket.socket(fileno=control), output).run())


def _probe(room: str, shown: str) -> int:
    if sys.platform != "linux" or os.uname().machine not in walls.MACHINES:
        sys.stderr.write(f"walls are known for Linux on {' and '.join(walls.MACHINES)}\n")
        return 1

    def inside() -> None:
        if os.fork() == 0:
            walls.narrow(256 * walls.MIB, 1)
            os.execv("/bin/sh", ["sh", "-c", ":"])  # noqa: S606 - nothing of ours is in it
        if os.waitstatus_to_exitcode(os.wait()[1]):
            raise OSError(1, "no program can be run", "/bin/sh")

    return run({"room": room, "shown": [shown], "commands": {}}, inside)


@functools.cache
def problem(python: str) -> str:
    """Why no sandbox can be made on this computer; empty when it can. Asked once, in a process that tries."""
    if sys.platform != "linux":
        return f"{sys.platform} has no user namespaces"
    with tempfile.TemporaryDirectory() as room:
        words = [sys.executable, *WORDS, "probe", room, python]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False, env={})
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"the attempt ended with status {done.returncode}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        raise SystemExit(_run(*map(int, sys.argv[2:5])))
    raise SystemExit(_probe(*sys.argv[2:]))
