"""One boot of a machine, seen from the emulator: its order to the host, its reports, its output."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Mapping
from typing import Any, Protocol

from machinequeue.machines.emulator.executions import Execution
from machinequeue.machines.emulator.host import send_order
from machinequeue.machines.emulator.output import Output

CHUNK = 65536
KILLED = {"exit": 128 + signal.SIGKILL, "signal": int(signal.SIGKILL)}

Report = Mapping[str, Any]


class Listener(Protocol):
    """Who is told about a boot."""

    def on_started(self, pid: int) -> None:
        """The command runs."""

    def on_out_of_memory(self, pid: int) -> None:
        """A process was killed for using more memory than the machine has."""

    def on_ended(self, report: Report) -> None:
        """Every process is gone; `report` has exit, signal (or -1) and oom. Told exactly once."""


class Boot:
    """Watches one init in the running event loop."""

    def __init__(self, host: socket.socket, order: Report, output: Output, listener: Listener) -> None:
        self._loop = asyncio.get_running_loop()
        self._output = output
        self._listener = listener
        self._received = b""
        self._ended = False
        self._executions: dict[int, Execution] = {}
        self._control, theirs = socket.socketpair()
        self._pipe, write_end = os.pipe()
        try:
            send_order(host, order, theirs, write_end)
        finally:
            theirs.close()
            os.close(write_end)
        self._control.setblocking(False)
        os.set_blocking(self._pipe, False)
        self._loop.add_reader(self._control, self._listen)
        self._loop.add_reader(self._pipe, self._copy)

    def signal(self, number: int) -> None:
        """Signal the processes of the config."""
        self._command(signal=number)

    def stop(self, number: int, grace_seconds: float) -> None:
        """Signal the processes of the config, and kill those that still live after the grace."""
        self._command(stop=number, timeout=grace_seconds)

    def kill(self) -> None:
        """Kill everything."""
        self._command(kill=True)

    def run_out_of_memory(self) -> None:
        """Kill the biggest process as if it had gone over the machine's memory."""
        self._command(oom=True)

    def abandon(self) -> None:
        """Let go: the init, left alone, kills everything at once, and nothing is reported any more."""
        self._ended = True
        self._loop.remove_reader(self._control)
        self._control.close()
        self._close_pipe()
        self._end_executions()

    def execute(self, descriptors: list[int]) -> Execution:
        """Have the init start one more process; `descriptors` are its words, stdin, stdout and stderr."""
        number = max(self._executions, default=0) + 1
        execution = self._executions[number] = Execution(number, self._loop.create_future())
        try:
            socket.send_fds(self._control, [json.dumps({"execute": number}).encode() + b"\n"], descriptors)
        except OSError:
            self._end_executions()  # the init is ending, and everybody with it
        return execution

    def end_execution(self, number: int) -> None:
        """Kill such a process with all below it."""
        self._command(end=number)

    def _end_executions(self) -> None:
        for execution in self._executions.values():
            if not execution.outcome.done():
                execution.outcome.set_result(KILLED)
        self._executions.clear()

    def _command(self, **command: Any) -> None:
        if not self._ended:
            try:
                self._control.sendall(json.dumps(command).encode() + b"\n")
            except OSError:
                pass  # it is ending; its report is on the way

    def _listen(self) -> None:
        try:
            chunk = self._control.recv(CHUNK)
        except BlockingIOError:
            return
        except ConnectionError:
            chunk = b""
        *lines, self._received = (self._received + chunk).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        if not chunk:
            self._end({**KILLED, "oom": False})

    def _take(self, report: Report) -> None:
        if "started" in report:
            self._listener.on_started(report["started"])
        elif "executed" in report:
            execution = self._executions.pop(report["executed"], None)
            if execution is not None and not execution.outcome.done():
                execution.outcome.set_result(report)
        elif "exit" in report:
            self._end(report)
        else:
            self._listener.on_out_of_memory(report["oom"])

    def _end(self, report: Report) -> None:
        if self._ended:
            return
        self._ended = True
        self._loop.remove_reader(self._control)
        self._control.close()
        while self._copy():
            pass
        self._close_pipe()
        self._end_executions()
        self._listener.on_ended(report)

    def _copy(self) -> bool:
        """Take a chunk of output; whether there was one."""
        if self._pipe < 0:
            return False
        try:
            data = os.read(self._pipe, CHUNK)
        except BlockingIOError:
            return False
        self._output.feed(data)
        if not data:
            self._close_pipe()
        return bool(data)

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            self._loop.remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
