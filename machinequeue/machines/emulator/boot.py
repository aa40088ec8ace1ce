"""One boot of a machine, seen from the emulator: its order to the host, its reports, its output."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Mapping
from typing import Any, Protocol

from machinequeue.machines.emulator.host import send_order
from machinequeue.machines.emulator.output import Output

CHUNK = 65536

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
        """Signal the main process."""
        self._command(signal=number)

    def stop(self, number: int, grace_seconds: float) -> None:
        """Signal the main process, and kill it when it still lives after the grace."""
        self._command(stop=number, timeout=grace_seconds)

    def kill(self) -> None:
        """Kill everything."""
        self._command(kill=True)

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
            self._end({"exit": 128 + signal.SIGKILL, "signal": int(signal.SIGKILL), "oom": False})

    def _take(self, report: Report) -> None:
        if "started" in report:
            self._listener.on_started(report["started"])
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
