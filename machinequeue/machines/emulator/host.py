"""The process that forks machines. Single-threaded and small, so that a fork costs a millisecond at most.

The emulator forks it before importing anything big, and speaks to it over one socket: a length, a JSON order, and two
file descriptors (the machine's control socket and its output pipe). It never answers; the machine's init does.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from machinequeue.machines.emulator import trees
from machinequeue.machines.emulator.init import Init

SANDBOX = Path(__file__).with_name("sandbox.py")
HEADER = struct.Struct("!I")


def fork_host() -> tuple[int, socket.socket]:
    """Fork the host; returns its pid and the socket to it. To be called before threads and big imports."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _serve(theirs)
    theirs.close()
    return pid, ours


def send_order(host: socket.socket, order: Mapping[str, Any], control: socket.socket, output: int) -> None:
    """Ask the host for a machine. `order` is what `Init` wants; the descriptors stay the caller's to close."""
    body = json.dumps(order).encode()
    socket.send_fds(host, [HEADER.pack(len(body))], [control.fileno(), output])
    host.sendall(body)


def _serve(emulator: socket.socket) -> NoReturn:
    status = 1
    try:
        _detach()
        _Host(emulator).run()
        status = 0
    finally:
        os._exit(status)


def _detach() -> None:
    os.setsid()
    trees.rename("mq-host")
    trees.become_subreaper()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    gc.collect()
    gc.freeze()


class _Host:
    def __init__(self, emulator: socket.socket) -> None:
        self.emulator = emulator
        self.inits: set[int] = set()
        self.wakeup, self.waker = socket.socketpair()
        for end in (self.wakeup, self.waker):
            end.setblocking(False)

    def run(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self.emulator, select.POLLIN)
        poll.register(self.wakeup, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self.wakeup.fileno() in ready:
                self.wakeup.recv(4096)
                self._reap()
            if self.emulator.fileno() in ready and not self._take_order():
                return

    def _take_order(self) -> bool:
        header, fds, _, _ = socket.recv_fds(self.emulator, HEADER.size, 2)
        if len(header) < HEADER.size:
            return False
        order = json.loads(self._read(HEADER.unpack(header)[0]))
        for fd in fds:
            os.set_inheritable(fd, False)
        pid = os.fork()
        if pid == 0:
            self._become_init(order, *fds)
        self.inits.add(pid)
        for fd in fds:
            os.close(fd)
        return True

    def _become_init(self, order: Mapping[str, Any], control: int, output: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for end in (self.emulator, self.wakeup, self.waker):
                end.close()
            if "shown" in order:
                _become_sandbox(order, control, output)
            Init(order, socket.socket(fileno=control), output).run()
        finally:
            os._exit(1)

    def _read(self, size: int) -> bytes:
        body = bytearray()
        while len(body) < size:
            chunk = self.emulator.recv(size - len(body))
            if not chunk:
                raise EOFError("the emulator went away in the middle of an order")
            body += chunk
        return bytes(body)

    def _reap(self) -> None:
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self.inits.discard(pid)
        except ChildProcessError:
            pass
        # What an init that was killed leaves behind comes to us, and must not live on.
        for orphan in set(trees.children(os.getpid())) - self.inits:
            trees.send(orphan, signal.SIGKILL)


def _become_sandbox(order: Mapping[str, Any], control: int, output: int) -> NoReturn:
    """Go on as another program, whose memory and environment hold nothing of the emulator's."""
    import tempfile

    descriptor, path = tempfile.mkstemp()
    Path(path).unlink()
    os.write(descriptor, json.dumps(order).encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    for each in (descriptor, control, output):
        os.set_inheritable(each, True)
    words = [sys.executable, "-I", "-S", str(SANDBOX), "run", *map(str, (descriptor, control, output))]
    os.execve(words[0], words, {})  # noqa: S606 - no shell is wanted
