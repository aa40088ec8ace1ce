"""End a server that nobody asks anything of, so that its machine stops costing.

`idle_shutdown` wraps a WSGI or ASGI application and counts what is in progress: responses until their last byte,
streams and WebSockets until they close. Each worker process keeps its count in a small file that all workers of the
server read, and that it holds locked while it lives: the kernel lets go of it however the worker ends. When every live
worker has been idle for long enough, the oldest of them asks the server to end, with the signal on which servers let
requests finish.
"""

import atexit
import contextlib
import fcntl
import mmap
import multiprocessing
import os
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from asgiref.sync import iscoroutinefunction

from machinequeue import conf
from machinequeue.telemetry import emit

FOLDER = "machinequeue-idle-"
LOOKS_PER_SPAN = 10
LONGEST_LOOK = 1.0

_SLOT = struct.Struct("=qd")
"""Requests in progress, and the monotonic time (the same in all processes of a computer) of the last change."""


class Clock:
    """This process's slot among those of one server, and what all slots say together. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._count = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pid = os.getpid()
        self.path = folder / f"{self._pid:010}-{time.monotonic_ns():x}"
        # Under a name that nobody looks at until it is locked: a slot that is not locked is cleared away.
        hidden = folder / f".{self.path.name}"
        self._file = hidden.open("w+b")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.write(bytes(_SLOT.size))  # a full disk is told here, not by a signal when it is written to
        self._file.flush()
        self._slot = mmap.mmap(self._file.fileno(), _SLOT.size)
        self._write()
        hidden.rename(self.path)
        atexit.register(self.close)

    def _write(self) -> None:
        _SLOT.pack_into(self._slot, 0, self._count, time.monotonic())

    def begin(self) -> None:
        """A request, or a connection that stays open, began."""
        with self._lock:
            self._count += 1
            self._write()

    def end(self) -> None:
        """It ended."""
        with self._lock:
            self._count -= 1
            self._write()

    def idle_seconds(self) -> float:
        """For how long no worker of the server has had anything to do; 0.0 while one has."""
        newest = 0.0
        for path in self._slots():
            count, changed = self._read(path)
            if count > 0:
                return 0.0
            newest = max(newest, changed)
        return max(0.0, time.monotonic() - newest)

    def is_first(self) -> bool:
        """Whether no live worker's slot comes before ours: one of them has to act."""
        return next((path for path in self._slots() if self._read(path)[1]), None) == self.path

    def _slots(self) -> list[Path]:
        # Somebody may have cleared the folder away: then nobody is first, and the server goes on.
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in paths if not path.name.startswith("."))

    def _read(self, path: Path) -> tuple[int, float]:
        """A slot; (0, 0.0) of a worker that is no more."""
        try:
            with path.open("rb") as file:
                if path != self.path and _is_abandoned(file.fileno()):
                    path.unlink(missing_ok=True)
                    return 0, 0.0
                data = file.read(_SLOT.size)
        except FileNotFoundError:
            return 0, 0.0
        count, changed = _SLOT.unpack(data)
        return count, changed

    def close(self) -> None:
        """Give the slot up, and with the last one the folder."""
        atexit.unregister(self.close)
        if self._pid != os.getpid():
            return  # a fork of its process ends
        self.path.unlink(missing_ok=True)
        self._file.close()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _is_abandoned(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Watcher:
    """The clock of this process and the thread that looks at it; both anew in a process that was forked."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._server, self._signal = _server()
        self._lock = threading.Lock()
        self._clock: Clock | None = None
        _clear_abandoned()
        self.clock()
        # Some servers load the application before they fork. A worker has a clock from its first request on.
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock, self._clock = threading.Lock(), None

    def clock(self) -> Clock:
        """The clock of this very process."""
        if self._clock is None:
            with self._lock:
                if self._clock is None:
                    self._clock = Clock(_folder(self._server))
                    threading.Thread(
                        target=self._watch, args=(self._clock,), name="machinequeue-idle", daemon=True
                    ).start()
        return self._clock

    def _watch(self, clock: Clock) -> None:
        pause = threading.Event()
        while True:
            pause.wait(min(LONGEST_LOOK, self.seconds / LOOKS_PER_SPAN))
            idle = clock.idle_seconds()
            if idle >= self.seconds and clock.is_first():
                emit("server.idle", seconds=round(idle, 1), server=self._server)
                os.kill(self._server, self._signal)
                pause.wait(self.seconds)


def _folder(server: int) -> Path:
    return Path(tempfile.gettempdir()) / f"{FOLDER}{os.getuid()}-{server}"


def _clear_abandoned() -> None:
    """Remove the folders of servers that are no more; a worker that was killed left its slot there."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}{os.getuid()}-*"):
        server = folder.name.rpartition("-")[2]
        if server.isdigit() and not _is_alive(int(server)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _server() -> tuple[int, signal.Signals]:
    """The process that ends this server and all its workers, and the signal on which it does so gently."""
    # uvicorn and granian start workers through multiprocessing.
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        return parent.pid, signal.SIGTERM
    callers = set(_callers())
    # gunicorn's worker is a fork of its arbiter, which would replace a worker that ended alone.
    if any(name.startswith("gunicorn.workers") for name in callers):
        return os.getppid(), signal.SIGTERM
    # uvicorn ends as gently on either, but after SIGTERM its exit code is that of a process that was killed: a restart
    # policy "on-failure" would start it again.
    alone = any(name.startswith("uvicorn.") for name in callers)
    return os.getpid(), signal.SIGINT if alone else signal.SIGTERM


def _callers() -> Iterator[str]:
    frame = sys._getframe()
    while frame is not None:
        yield str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back  # type: ignore[assignment]


# The applications ---------------------------------------------------------------------------------------------------


class _Body:
    """The body of a WSGI response, until the server closes it."""

    def __init__(self, body: Iterable[bytes], ended: Callable[[], None]) -> None:
        self._body = body
        self._ended = ended

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        ended, self._ended = self._ended, _nothing
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            ended()


def _nothing() -> None:
    """A body may be closed twice."""


def idle_shutdown(application: Any, seconds: float | None = None) -> Any:
    """The WSGI or ASGI application, in a server that ends after so many `seconds` without a request.

    In wsgi.py: `application = idle_shutdown(get_wsgi_application())`; in asgi.py the same. `seconds` is
    `MACHINEQUEUE["IDLE_SHUTDOWN"]` when it is not given; with 0 the application is returned as it is.
    """
    span = conf.settings().idle_shutdown if seconds is None else seconds
    if span <= 0:
        return application
    watcher = Watcher(span)
    is_async = iscoroutinefunction(application) or iscoroutinefunction(getattr(application, "__call__", None))  # noqa: B004
    return _asgi(application, watcher) if is_async else _wsgi(application, watcher)


def _asgi(application: Callable[..., Awaitable[None]], watcher: Watcher) -> Callable[..., Awaitable[None]]:
    async def counted(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":  # as long as the server's life
            await application(scope, receive, send)
            return
        clock = watcher.clock()
        clock.begin()
        try:
            await application(scope, receive, send)
        finally:
            clock.end()

    return counted


def _wsgi(application: Callable[..., Iterable[bytes]], watcher: Watcher) -> Callable[..., Iterable[bytes]]:
    def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        clock = watcher.clock()
        clock.begin()
        try:
            return _Body(application(environ, start_response), clock.end)
        except BaseException:
            clock.end()
            raise

    return counted
