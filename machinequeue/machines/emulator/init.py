"""The first process of a machine: starts the commands, forwards signals, reaps, enforces memory, reports the end.

It runs in a process that the host forked, speaks JSON lines over `control` with the emulator, and never returns.
Commands: {"signal": n}, {"stop": n, "timeout": s}, {"kill": true}, {"oom": true}, {"execute": number}, {"end": number}.
{"execute": number} comes with four descriptors: a file with a JSON list of words, and stdin, stdout and stderr of a
further process.
Reports: {"started": pid}, {"oom": pid}, {"executed": number, "exit": code, "signal": n or -1}, and at last
{"exit": code, "signal": n or -1, "oom": bool}.
End of file on `control` means that the emulator is gone: everything below dies at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from machinequeue.machines.emulator import trees

SAMPLE_SECONDS = 0.25
MIB = 1024 * 1024
NOT_FOUND, NOT_EXECUTABLE, KILLED = 127, 126, 128 + signal.SIGKILL
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
DESCRIPTORS_PER_READ = 64
DESCRIPTORS_PER_EXECUTION = 4


class Init:
    """One boot of one machine. `order` has processes (argv and env), cwd, memory_mb, files and room (see `mounts`).

    The machine ends when one of its processes does; when it is asked to stop, with the last of them.
    """

    sample_seconds = SAMPLE_SECONDS

    def __init__(self, order: Mapping[str, Any], control: socket.socket, output: int) -> None:
        self.order = order
        self.control = control
        self.output = output
        self.limit = int(order["memory_mb"]) * MIB
        self.received = b""
        self.descriptors: list[int] = []
        self.processes: list[int] = []
        self.living: set[int] = set()
        self.first_end: tuple[int, int] | None = None
        self.executions: dict[int, int] = {}
        self.kill_at: float | None = None
        self.sample_at = time.monotonic() + self.sample_seconds
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
        self._kill_everybody()
        if code is None:
            self._report_end()
        else:
            self._report(exit=code, signal=-1, oom=False)
        os._exit(0)

    # -- boot -----------------------------------------------------------------------------------------------------

    def _boot(self) -> int | None:
        """Start the commands; None when they run, else the exit code that says why not."""
        code = self._place_files()
        for process in self.order["processes"]:
            if code is None:
                code = self._start(process)
        os.close(self.output)
        if code is None:
            self._report(started=self.processes[0])
        return code

    def _place_files(self) -> int | None:
        if self.order["files"]:
            # Only now: a machine without files shall not pay for the import.
            from machinequeue.machines.emulator import mounts

            try:
                mounts.place_all(self.order["room"], self.order["files"])
            except OSError as error:
                return self._complain(error, "place a file", NOT_EXECUTABLE)
        try:
            os.chdir(self.order["cwd"])
        except OSError as error:
            return self._complain(error, f"enter {self.order['cwd']}", NOT_EXECUTABLE)
        return None

    def _start(self, process: Mapping[str, Any]) -> int | None:
        argv = process["argv"]
        try:
            nothing = os.open(os.devnull, os.O_RDONLY)
            try:
                pid = self._spawn(argv, process["env"], (nothing, self.output, self.output))
            finally:
                os.close(nothing)
        except OSError as error:
            return self._complain(error, f"run {argv[0]}", _code_of(error))
        self.processes.append(pid)
        self.living.add(pid)
        return None

    def _spawn(self, argv: list[str], environment: Mapping[str, str], standard: Sequence[int]) -> int:
        """Start a process in a session of its own; its pid. Raises OSError."""
        os.environ["PATH"] = environment["PATH"]  # where posix_spawnp looks
        # Not fork and exec: a second copy of this process would cost as much as all the rest of a boot.
        return os.posix_spawnp(
            argv[0],
            argv,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(standard)],
            setsid=True,
            setsigmask=(),
            setsigdef=(*IGNORED_BY_PYTHON, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM),
        )

    def _complain(self, error: OSError, deed: str, code: int) -> int:
        os.write(self.output, f"Error: {error.strerror}: could not {deed}\n".encode())
        return code

    # -- watch ----------------------------------------------------------------------------------------------------

    def _watch(self, wakeup: socket.socket) -> None:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        self._reap()
        while not self._is_over():
            ready = dict(poll.poll(self._patience()))
            if wakeup.fileno() in ready:
                wakeup.recv(4096)
            if self.control.fileno() in ready:
                self._listen()
            self._look_at_clock()
            self._reap()

    def _is_over(self) -> bool:
        stopping = self.kill_at is not None
        return self.first_end is not None and not (stopping and self.living)

    def _patience(self) -> float:
        soonest = min(self.sample_at if trees.HAS_PROC else time.monotonic() + 60, self.kill_at or float("inf"))
        return max(0.0, soonest - time.monotonic()) * 1000

    def _listen(self) -> None:
        try:
            chunk, descriptors, _, _ = socket.recv_fds(self.control, 65536, DESCRIPTORS_PER_READ)
        except ConnectionError:
            chunk, descriptors = b"", []
        if not chunk:
            self._kill_everybody()
            os._exit(0)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self.descriptors += descriptors
        *lines, self.received = (self.received + chunk).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, command: Mapping[str, Any]) -> None:
        if "signal" in command:
            self._signal(command["signal"])
        if "stop" in command:
            self._signal(command["stop"])
            self.kill_at = time.monotonic() + command["timeout"]
        if "kill" in command:
            self.kill_at = None
            self._signal(signal.SIGKILL)
        if "oom" in command:
            self._kill_for_memory(self._sizes() or dict.fromkeys(self.living, 0))
        if "execute" in command:
            self._execute(command["execute"])
        if "end" in command:
            self._end_execution(command["end"])

    def _signal(self, number: int) -> None:
        for pid in self.living:
            trees.send(pid, number)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            self._signal(signal.SIGKILL)
        if trees.HAS_PROC and now >= self.sample_at:
            self.sample_at = now + self.sample_seconds
            self._enforce_memory()

    def _enforce_memory(self) -> None:
        if sum(map(trees.resident_bytes, trees.descendants(os.getpid()))) <= self.limit:
            return
        # Resident memory counts the pages that forked processes share once for each of them; be exact before killing.
        sizes = self._sizes()
        if sum(sizes.values()) > self.limit:
            self._kill_for_memory(sizes)
            self.sample_at = time.monotonic() + self.sample_seconds / 5

    def _sizes(self) -> dict[int, int]:
        return {pid: trees.proportional_bytes(pid) for pid in trees.descendants(os.getpid())}

    def _kill_for_memory(self, sizes: Mapping[int, int]) -> None:
        victim = max(sizes, key=lambda pid: sizes[pid] + trees.oom_bias(pid) * self.limit // 1000)
        self.killed_for_memory.add(victim)
        trees.send(victim, signal.SIGKILL)
        self._report(oom=victim)

    def _reap(self) -> None:
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self._note_end(pid, status)
        except ChildProcessError:
            pass

    def _note_end(self, pid: int, status: int) -> None:
        if pid in self.executions:
            code, number = _exit_of(status)
            self._report(executed=self.executions.pop(pid), exit=code, signal=number)
        elif pid in self.living:
            self.living.discard(pid)
            self.first_end = self.first_end or (pid, status)

    # -- further processes ----------------------------------------------------------------------------------------

    def _execute(self, number: int) -> None:
        words, *standard = self.descriptors[:DESCRIPTORS_PER_EXECUTION]
        del self.descriptors[:DESCRIPTORS_PER_EXECUTION]
        with os.fdopen(words, "rb") as file:
            argv = json.load(file)
        try:
            pid = self._spawn(argv, self.order["processes"][0]["env"], standard)
        except OSError as error:
            os.write(standard[2], f"Error: {error.strerror}: could not run {argv[0]}\n".encode())
            self._report(executed=number, exit=_code_of(error), signal=-1)
        else:
            self.executions[pid] = number
        finally:
            for descriptor in standard:
                os.close(descriptor)

    def _end_execution(self, number: int) -> None:
        for pid, each in self.executions.items():
            if each == number:
                below = trees.descendants(pid)
                trees.send_group(pid, signal.SIGKILL)
                for descendant in below:
                    trees.send(descendant, signal.SIGKILL)

    # -- end ------------------------------------------------------------------------------------------------------

    def _kill_everybody(self) -> None:
        trees.kill_below(os.getpid(), *self.processes, *self.executions)

    def _report_end(self) -> None:
        assert self.first_end is not None
        pid, status = self.first_end
        code, number = _exit_of(status)
        # A shell whose command was killed for memory ends with the code of a killed one.
        by_memory = pid in self.killed_for_memory or (bool(self.killed_for_memory) and code == KILLED)
        self._report(exit=code, signal=number, oom=by_memory)

    def _report(self, **report: Any) -> None:
        try:
            self.control.sendall(json.dumps(report).encode() + b"\n")
        except OSError:
            pass  # the emulator is gone; the next read says so


def _code_of(error: OSError) -> int:
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def _exit_of(status: int) -> tuple[int, int]:
    """Exit code, and the number of the signal or -1."""
    code = os.waitstatus_to_exitcode(status)
    return (128 - code, -code) if code < 0 else (code, -1)


def _wake_on_child() -> socket.socket:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    _KEPT.append(theirs)
    return ours


_KEPT: list[socket.socket] = []
