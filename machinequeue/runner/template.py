"""The template: a process with Django set up, no thread and no connection, that forks a task process on request.

The supervisor's side is `Template`, the process itself is `_serve`. Requests: `{"fork": n, "preload": path}` with two
descriptors (the task's channel and output), `{"sweep": true}`. Answers: `{"forked": n, "pid": ...}`,
`{"exited": pid, "status": ..., "peak_mb": ...}`, `{"swept": true}`.

The template adopts whoever loses its parent below it. When it says that a task process has exited, nothing that the
process started lives any more, in whatever session or group it hid.
"""

import gc
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from django.db import connections
from django.utils.module_loading import import_string

from machinequeue.runner import processes, task_process
from machinequeue.runner.channel import Channel, Closed, pair

CLOSE_SECONDS = 2.0
"""What the template gets to end by itself; one that imports a module which hangs does not."""


class Stuck(Exception):
    """The template did not fork a process in time, for the module of the task `path` hangs where it is imported."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass
class Child:
    """A task process as the supervisor sees it. `pid` is 0 until the template has said it."""

    number: int
    path: str
    """The task whose module it has imported."""
    channel: Channel
    output: int
    pid: int = 0
    status: int | None = None
    """Its exit code or the negative number of its signal, once it has ended."""
    peak_mb: int | None = None
    """Its largest resident size, once it has ended; its own, or that of the largest child that it waited for."""

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
    shared: bool = False
    """Whether a process executes several runs."""
    _swept: bool = False
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

    def take(self, path: str, seconds: float) -> Child:
        """A living process for a run, its process id known. Raises Closed when the template has died, Stuck."""
        ends_at = time.monotonic() + seconds
        while True:
            self.prepare(path)
            child = self._spares.popleft()
            while not child.pid:
                if not self.listen_within(ends_at - time.monotonic()):
                    raise Stuck(child.path)
            self.listen_within(0)
            if child.status is None:
                return child
            child.close()  # it died while it waited

    def _ask(self, path: str) -> Child:
        ours, theirs = pair()
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        self._count += 1
        request = {"fork": self._count, "preload": path, "shared": self.shared}
        self.channel.send(request, (theirs.fileno(), writable))
        theirs.close()
        os.close(writable)
        child = self.children[self._count] = Child(self._count, path, ours, readable)
        return child

    def listen(self) -> None:
        """Read what the template says; to be called when its channel is readable. Raises Closed."""
        for message in self.channel.available():
            if "forked" in message:
                self.children[message["forked"]].pid = message["pid"]
            elif "swept" in message:
                self._swept = True
            else:
                ended = next((c for c in self.children.values() if c.pid == message["exited"]), None)
                if ended is not None:
                    ended.status, ended.peak_mb = message["status"], message["peak_mb"]
                    del self.children[ended.number]

    def listen_within(self, seconds: float) -> bool:
        """Read what the template says, or has said, within this time; False when it said nothing. Raises Closed."""
        if not select.select([self.channel.fileno()], [], [], max(seconds, 0.0))[0]:
            return False
        self.listen()
        return True

    def wait_exit(self, child: Child) -> None:
        """Until the child has ended. Raises Closed."""
        while child.status is None:
            self.listen()

    def sweep(self) -> None:
        """End what lost its parent below the template: what a run left behind in a process that others share."""
        self._swept = False
        self.channel.send({"sweep": True})
        while not self._swept:
            self.listen()

    def close(self) -> None:
        """End the template and every process below it."""
        for child in self.children.values():
            if child.pid:
                processes.kill_group(child.pid)
        self.channel.close()
        ends_at = time.monotonic() + CLOSE_SECONDS
        with suppress(ChildProcessError):
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > ends_at:
                    processes.kill(self.pid)
                time.sleep(processes.SWEEP_PAUSE)
        processes.end_strays()  # of a template that died before it could end them


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
    processes.adopt_orphans()
    gc.freeze()
    family = _Family()
    try:
        while True:
            readable, _, _ = select.select([channel.fileno(), waker.fileno()], [], [])
            if waker.fileno() in readable:
                _reap(channel, waker, family)
            if channel.fileno() in readable:
                for message in channel.available():
                    if "fork" in message:
                        family.helpers |= _preload(message["preload"])
                        family.tasks.add(_fork(channel, message, (waker, wakes)))
                    else:
                        family.end_strays()
                        channel.send({"swept": True})
    except (Closed, KeyboardInterrupt):
        pass
    for pid in family.tasks:
        processes.kill_group(pid)
    processes.end_strays()
    os._exit(0)


@dataclass
class _Family:
    """The children that the template means to have. Every other one is an orphan that it adopted: a stray."""

    tasks: set[int] = field(default_factory=set)
    helpers: set[int] = field(default_factory=set)
    """What imported modules started."""

    def end_strays(self) -> None:
        processes.end_strays(self.tasks | self.helpers)


def _reap(channel: Channel, waker: socket.socket, family: _Family) -> None:
    with suppress(BlockingIOError):
        waker.recv(4096)
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        family.helpers.discard(pid)
        if pid in family.tasks:
            family.tasks.discard(pid)
            processes.kill_group(pid)
            family.end_strays()
            ended = {"status": os.waitstatus_to_exitcode(status), "peak_mb": processes.peak_mb(usage)}
            channel.send({"exited": pid, **ended})


def _fork(channel: Channel, message: dict[str, Any], wake: tuple[socket.socket, ...]) -> int:
    end, output = channel.descriptors.popleft(), channel.descriptors.popleft()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        channel.close()
        for each in wake:
            each.close()
        task_process.main(end, output, message["preload"], shared=message["shared"])
    with suppress(OSError):
        os.setpgid(pid, pid)  # here too, so that the group exists whoever runs first
    os.close(end)
    os.close(output)
    channel.send({"forked": message["fork"], "pid": pid})
    return pid


def _preload(path: str) -> set[int]:
    """Import what the run will need, once for all; the processes that this started.

    What fails here fails again, and is reported, in the run itself.
    """
    if not path or path.rpartition(".")[0] in sys.modules:
        return set()
    before = processes.children(os.getpid())
    with suppress(Exception, SystemExit):
        import_string(path)
    connections.close_all()
    gc.freeze()
    return set(processes.children(os.getpid())).difference(before)
