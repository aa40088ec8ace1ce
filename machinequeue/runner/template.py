"""The template: a process with Django set up, no thread and no connection, that forks a task process on request.

The supervisor's side is `Template`, the process itself is `_serve`. Requests: `{"fork": n, "preload": path}` with two
descriptors (the task's channel and output). Answers: `{"forked": n, "pid": ...}`, `{"exited": pid, "status": ...}`.
"""

import gc
import os
import select
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from django.db import connections
from django.utils.module_loading import import_string

from machinequeue.runner import task_process
from machinequeue.runner.channel import Channel, Closed, pair


@dataclass
class Child:
    """A task process as the supervisor sees it. `pid` is 0 until the template has said it."""

    number: int
    channel: Channel
    output: int
    pid: int = 0
    status: int | None = None
    """Its wait status, once it has ended."""

    def close(self) -> None:
        self.channel.close()
        os.close(self.output)


@dataclass
class Template:
    """The supervisor's handle."""

    channel: Channel
    pid: int
    children: dict[int, Child] = field(default_factory=dict)
    """Those that were asked for and have not ended, by number."""
    _count: int = 0
    _spares: deque[Child] = field(default_factory=deque)

    @classmethod
    def start(cls) -> "Template":
        """Fork it off, before the caller has threads or connections."""
        connections.close_all()
        ours, theirs = pair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        return cls(ours, pid)

    def prepare(self, path: str) -> None:
        """Have a process forked ahead of need, with the task's module imported, unless one waits already."""
        if not self._spares:
            self._spares.append(self._ask(path))

    def take(self, path: str) -> Child:
        """A process for a run. Raises Closed when the template has died."""
        self.prepare(path)
        return self._spares.popleft()

    def _ask(self, path: str) -> Child:
        ours, theirs = pair()
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        self._count += 1
        self.channel.send({"fork": self._count, "preload": path}, (theirs.fileno(), writable))
        theirs.close()
        os.close(writable)
        child = self.children[self._count] = Child(self._count, ours, readable)
        return child

    def listen(self) -> None:
        """Read what the template says; to be called when its channel is readable. Raises Closed."""
        for message in self.channel.available():
            if "forked" in message:
                self.children[message["forked"]].pid = message["pid"]
            else:
                ended = next((c for c in self.children.values() if c.pid == message["exited"]), None)
                if ended is not None:
                    ended.status = message["status"]
                    del self.children[ended.number]
                    kill_group(ended.pid)

    def listen_now(self) -> None:
        """Read what the template has said, without waiting. Raises Closed."""
        if select.select([self.channel.fileno()], [], [], 0)[0]:
            self.listen()

    def wait_pid(self, child: Child) -> None:
        """Until the template has said the child's process id. Raises Closed."""
        while not child.pid:
            self.listen()

    def wait_exit(self, child: Child) -> None:
        """Until the child has ended. Raises Closed."""
        while child.status is None:
            self.listen()

    def close(self) -> None:
        """End the template and every process that it forked."""
        for child in self.children.values():
            if child.pid:
                kill_group(child.pid)
        self.channel.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a task process and all that it started (and did not move to a group of its own)."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


# The process itself -------------------------------------------------------------------------------------------------


def _serve(channel: Channel) -> None:
    """The template's life; never returns."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the supervisor decides
    waker, wakes = socket.socketpair()
    for end in (waker, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    gc.freeze()
    children: set[int] = set()
    try:
        while True:
            readable, _, _ = select.select([channel.fileno(), waker.fileno()], [], [])
            if waker.fileno() in readable:
                _reap(channel, waker, children)
            if channel.fileno() in readable:
                for message in channel.available():
                    children.add(_fork(channel, message, (waker, wakes)))
    except (Closed, KeyboardInterrupt):
        pass
    for pid in children:
        kill_group(pid)
    os._exit(0)


def _reap(channel: Channel, waker: socket.socket, children: set[int]) -> None:
    with suppress(BlockingIOError):
        waker.recv(4096)
    while True:
        try:
            pid, status, _ = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in children:  # else a child that an imported module started
            children.discard(pid)
            channel.send({"exited": pid, "status": os.waitstatus_to_exitcode(status)})


def _fork(channel: Channel, message: dict[str, Any], wake: tuple[socket.socket, ...]) -> int:
    _preload(message["preload"])
    end, output = channel.descriptors.popleft(), channel.descriptors.popleft()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        channel.close()
        for each in wake:
            each.close()
        task_process.main(end, output, message["preload"])
    with suppress(OSError):
        os.setpgid(pid, pid)  # here too, so that the group exists whoever runs first
    os.close(end)
    os.close(output)
    channel.send({"forked": message["fork"], "pid": pid})
    return pid


def _preload(path: str) -> None:
    """Import what the run will need, once for all. What fails here fails again, and is reported, in the run itself."""
    if path and path.rpartition(".")[0] not in sys.modules:
        with suppress(Exception, SystemExit):
            import_string(path)
        connections.close_all()
        gc.freeze()
