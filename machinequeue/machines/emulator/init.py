"""The first process of a machine: starts the command, forwards signals, reaps, enforces memory, reports the end.

It runs in a process that the host forked, speaks JSON lines over `control` with the emulator, and never returns.
Commands: {"signal": n}, {"stop": n, "timeout": s}, {"kill": true}. Reports: {"started": pid}, {"oom": pid},
{"exit": code, "signal": n or -1, "oom": bool}. End of file on `control` means that the emulator is gone: everything
below dies at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from machinequeue.machines.emulator import trees

SAMPLE_SECONDS = 0.25
MIB = 1024 * 1024
NOT_FOUND, NOT_EXECUTABLE, KILLED = 127, 126, 128 + signal.SIGKILL
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Init:
    """One boot of one machine. `order` has argv, env, cwd and memory_mb."""

    def __init__(self, order: Mapping[str, Any], control: socket.socket, output: int) -> None:
        self.order = order
        self.control = control
        self.output = output
        self.limit = int(order["memory_mb"]) * MIB
        self.received = b""
        self.main = 0
        self.status: int | None = None
        self.kill_at: float | None = None
        self.sample_at = time.monotonic() + SAMPLE_SECONDS
        self.killed_for_memory: set[int] = set()

    def run(self) -> NoReturn:
        """Boot, watch, report, exit."""
        os.setsid()
        trees.rename("mq-init")
        trees.become_subreaper()
        wakeup = _wake_on_child()
        code = self._boot()
        if code is None:
            self._watch(wakeup)
            trees.kill_below(os.getpid(), self.main)
            self._report_end()
        else:
            self._report(exit=code, signal=-1, oom=False)
        os._exit(0)

    # -- boot -----------------------------------------------------------------------------------------------------

    def _boot(self) -> int | None:
        """Start the command; None when it runs, else the exit code that says why not."""
        argv, environment = self.order["argv"], self.order["env"]
        os.environ["PATH"] = environment["PATH"]  # where posix_spawnp looks
        try:
            os.chdir(self.order["cwd"])
            # Not fork and exec: a second copy of this process would cost as much as all the rest of a boot.
            self.main = os.posix_spawnp(
                argv[0],
                argv,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self.output, 1),
                    (os.POSIX_SPAWN_DUP2, self.output, 2),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=(*IGNORED_BY_PYTHON, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM),
            )
        except OSError as error:
            os.write(self.output, f"Error: {error.strerror}: could not run {argv[0]}\n".encode())
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        finally:
            os.close(self.output)
        self._report(started=self.main)
        return None

    # -- watch ----------------------------------------------------------------------------------------------------

    def _watch(self, wakeup: socket.socket) -> None:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        self._reap()
        while self.status is None:
            ready = dict(poll.poll(self._patience()))
            if wakeup.fileno() in ready:
                wakeup.recv(4096)
            if self.control.fileno() in ready:
                self._listen()
            self._look_at_clock()
            self._reap()

    def _patience(self) -> float:
        soonest = min(self.sample_at if trees.HAS_PROC else time.monotonic() + 60, self.kill_at or float("inf"))
        return max(0.0, soonest - time.monotonic()) * 1000

    def _listen(self) -> None:
        try:
            chunk = self.control.recv(65536)
        except ConnectionError:
            chunk = b""
        if not chunk:
            trees.kill_below(os.getpid(), self.main)
            os._exit(0)
        *lines, self.received = (self.received + chunk).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, command: Mapping[str, Any]) -> None:
        if "signal" in command:
            trees.send(self.main, command["signal"])
        if "stop" in command:
            trees.send(self.main, command["stop"])
            self.kill_at = time.monotonic() + command["timeout"]
        if "kill" in command:
            trees.send(self.main, signal.SIGKILL)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            trees.send(self.main, signal.SIGKILL)
        if trees.HAS_PROC and now >= self.sample_at:
            self.sample_at = now + SAMPLE_SECONDS
            self._enforce_memory()

    def _enforce_memory(self) -> None:
        tree = trees.descendants(os.getpid())
        if sum(map(trees.resident_bytes, tree)) <= self.limit:
            return
        # Resident memory counts the pages that forked processes share once for each of them; be exact before killing.
        sizes = {pid: trees.proportional_bytes(pid) for pid in tree}
        if sum(sizes.values()) <= self.limit:
            return
        victim = max(sizes, key=lambda pid: sizes[pid] + trees.oom_bias(pid) * self.limit // 1000)
        self.killed_for_memory.add(victim)
        trees.send(victim, signal.SIGKILL)
        self._report(oom=victim)
        self.sample_at = time.monotonic() + SAMPLE_SECONDS / 5

    def _reap(self) -> None:
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self.main:
                    self.status = status
        except ChildProcessError:
            pass

    # -- report ---------------------------------------------------------------------------------------------------

    def _report_end(self) -> None:
        code = os.waitstatus_to_exitcode(self.status or 0)
        number = -code if code < 0 else -1
        code = 128 - code if code < 0 else code
        # A shell whose command was killed for memory ends with the code of a killed one.
        by_memory = self.main in self.killed_for_memory or (bool(self.killed_for_memory) and code == KILLED)
        self._report(exit=code, signal=number, oom=by_memory)

    def _report(self, **report: Any) -> None:
        try:
            self.control.sendall(json.dumps(report).encode() + b"\n")
        except OSError:
            pass  # the emulator is gone; the next read says so


def _wake_on_child() -> socket.socket:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    _KEPT.append(theirs)
    return ours


_KEPT: list[socket.socket] = []
