"""Carry wake-ups through huey: Redis when a URL is set, else a SQLite file.

A wake-up is a hint that a queue has due runs. It never is the only copy of anything: whatever goes wrong here
costs at most the second until a dispatcher looks by itself. This is the only room that knows huey or redis, and it
imports them inside its functions, so that a task machine never does.
"""

import atexit
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from machinequeue import conf
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.wakeups")

NAME = "machinequeue"
SEND_TIMEOUT = 0.2
"""Seconds that an enqueue may spend on a Redis that does not answer."""
BREAKER_SECONDS = 5.0
"""How long no wake-up is tried after one failed."""
POLL_SECONDS = 0.1
"""How often consumers look into the SQLite file."""

LOOK_TIMEOUT = 3.0
"""Seconds that somebody who only wants to know waits for Redis."""

Wake = Callable[[str, str], None]


class WakeupsUnreachable(Exception):
    """What carries wake-ups does not answer, or refuses."""


class _Breaker:
    """Lets a call through unless one failed a moment ago."""

    def __init__(self) -> None:
        self.closed_at = 0.0

    def open(self) -> bool:
        return time.monotonic() < self.closed_at

    def trip(self) -> None:
        self.closed_at = time.monotonic() + BREAKER_SECONDS


_breaker = _Breaker()


class _Outbox:
    """Wake-ups to be sent by a thread of their own, so that an enqueue never waits for Redis.

    What comes while one is being sent is merged with its like. The thread is started at the first wake-up of a
    process, again after a fork, and is given a moment to finish when the process ends.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lanes: dict[tuple[str, str], None] = {}
        self._sending = False
        self._thread: threading.Thread | None = None

    def add(self, lane: tuple[str, str]) -> None:
        with self._changed:
            self._lanes[lane] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._send, name="machinequeue-wakeups", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all is sent, at most so long. False when it was not."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lanes and not self._sending, seconds)

    def _send(self) -> None:
        while True:
            with self._changed:
                self._sending = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lanes)
                lanes, self._lanes, self._sending = list(self._lanes), {}, True
            for lane in lanes:
                try:
                    wake(*lane)
                except Exception:
                    logger.exception("A wake-up could not be sent.")


_outbox = _Outbox()


def _new_outbox() -> None:
    global _outbox  # noqa: PLW0603 - a fork has neither the thread nor a lock that can be trusted
    _outbox = _Outbox()


os.register_at_fork(after_in_child=_new_outbox)
atexit.register(lambda: _outbox.flush(2 * SEND_TIMEOUT))


def wake_soon(backend: str, queue: str) -> None:
    """Have a wake-up sent, at once and by another thread."""
    if not conf.in_machine() and not _breaker.open():
        _outbox.add((backend, queue))


def flush(seconds: float = 1.0) -> bool:
    """Wait until the wake-ups of this process are sent, at most so long. False when some were not."""
    return _outbox.flush(seconds)


def wake(backend: str, queue: str) -> bool:
    """Send a wake-up. Never raises, never takes long; False when it was not sent."""
    if conf.in_machine() or _breaker.open():
        return False
    try:
        _sender()(backend, queue)
    except Exception as error:
        # Whatever it is: the row is committed, and a dispatcher looks every second.
        _breaker.trip()
        emit("wakeup.unreachable", queue=queue, error=f"{type(error).__name__}: {_without_address(error)}")
        return False
    return True


def _without_address(error: Exception) -> str:
    """The error's text; a Redis URL may hold a password, so it is cut out."""
    url = conf.settings().redis_url
    return str(error).replace(url, "REDIS_URL") if url else str(error)


@lru_cache(maxsize=1)
def _sender() -> Callable[[str, str], None]:
    huey, message = _huey(timeout=SEND_TIMEOUT)

    @lru_cache(maxsize=256)
    def packed(backend: str, queue: str) -> bytes:
        data: bytes = huey.serialize_task(message.s(backend, queue))
        return data

    return lambda backend, queue: huey.storage.enqueue(packed(backend, queue))


def _huey(timeout: float, on_wake: Wake | None = None) -> tuple[Any, Any]:
    """A huey of this process and its one task, the wake-up."""
    from huey import PriorityRedisHuey, SqliteHuey
    from huey.serializer import Serializer
    from huey.storage import PriorityRedisStorage, SqliteStorage

    class RedisWakeups(PriorityRedisStorage):  # type: ignore[misc]
        """A burst of wake-ups of one queue is one member of the sorted set: huey's own prefix, a time, is left out."""

        def enqueue(self, data: bytes, priority: float | None = None) -> None:
            self.conn.zadd(self.queue_key, {bytes(8) + data: -(priority or 0)})

    class FileWakeups(SqliteStorage):  # type: ignore[misc]
        """The same for the file."""

        def enqueue(self, data: bytes, priority: float | None = None) -> None:
            statement = (
                "INSERT INTO task (queue, data, priority) SELECT ?, ?, ? "
                "WHERE NOT EXISTS (SELECT 1 FROM task WHERE queue = ? AND data = ?)"
            )
            blob = self.to_blob(data)
            self.sql(statement, (self.name, blob, priority or 0, self.name, blob), commit=True)

    class JSONSerializer(Serializer):  # type: ignore[misc]
        """Not pickle: who may write to Redis must not thereby run code in a dispatcher."""

        def _serialize(self, data: Any) -> bytes:
            return json.dumps(list(data)).encode()

        def _deserialize(self, data: bytes) -> Any:
            from huey.registry import Message

            return Message(*json.loads(data))

    shared = {"name": NAME, "results": False, "immediate": False, "serializer": JSONSerializer()}
    if url := conf.settings().redis_url:
        from redis import ConnectionPool

        # redis-py 8 reads for at most 5 s by default; a consumer blocks for one second at a time.
        pool = ConnectionPool.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=None)
        huey = PriorityRedisHuey(connection_pool=pool, storage_class=RedisWakeups, **shared)
    else:
        file = str(conf.state_dir() / "wakeups.sqlite3")
        huey = SqliteHuey(filename=file, fsync=False, storage_class=FileWakeups, **shared)

    def receive(backend: str, queue: str) -> None:
        if on_wake is not None:
            on_wake(backend, queue)

    return huey, huey.task(name="wake")(receive)


def probe(seconds: float = 1.0) -> str:
    """Why no wake-up could be carried now, waiting at most so long; empty when it could. Quotes no password."""
    try:
        if url := conf.settings().redis_url:
            _probe_redis(url, seconds)
        else:
            _probe_file(seconds)
    except Exception as error:  # whatever redis-py and the package's absence raise
        return f"{type(error).__name__}: {_without_address(error)}".rstrip(" .")
    return ""


def _probe_redis(url: str, seconds: float) -> None:
    from redis import Redis

    with Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=None) as client:
        # A write: a Redis that is full, or a replica, answers a ping all the same.
        client.set(f"{NAME}:probe", 1, ex=10)


def _probe_file(seconds: float) -> None:
    file = conf.state_dir() / "wakeups.sqlite3"
    with closing(sqlite3.connect(file, timeout=seconds)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()


@dataclass(frozen=True)
class Transport:
    """What carries wake-ups. `kind` is "redis" or "file"; `place` says where, without a password."""

    kind: str
    place: str
    version: str = ""
    milliseconds: float = 0.0
    eviction: str = ""
    """Redis's maxmemory-policy; empty where it is not told."""


def transport() -> Transport:
    """Look at what carries wake-ups. Raises WakeupsUnreachable, whose text names no password."""
    if problem := probe(LOOK_TIMEOUT):
        raise WakeupsUnreachable(problem)
    if not (url := conf.settings().redis_url):
        return Transport("file", str(conf.state_dir() / "wakeups.sqlite3"))
    try:
        return _redis(url)
    except Exception as error:  # whatever redis-py raises
        raise WakeupsUnreachable(f"{type(error).__name__}: {_without_address(error)}") from None


def _redis(url: str) -> Transport:
    from redis import Redis

    with Redis.from_url(url, socket_timeout=LOOK_TIMEOUT, socket_connect_timeout=LOOK_TIMEOUT, retry=None) as client:
        client.ping()
        began = time.perf_counter()
        client.ping()
        milliseconds = (time.perf_counter() - began) * 1000
        about = client.info()
    parts = urlsplit(url)
    place = f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    told = [str(about.get(name) or "") for name in ("redis_version", "maxmemory_policy")]
    return Transport("redis", place, told[0], milliseconds, told[1])


class Consumer:
    """Threads that receive wake-ups. `start()`, `stop()`; signals are left to the caller."""

    def __init__(self, on_wake: Wake, workers: int) -> None:
        from huey.consumer import Consumer as HueyConsumer

        logging.getLogger("huey").setLevel(logging.WARNING)
        self._quiet = threading.Event()
        huey, _ = _huey(timeout=10.0, on_wake=on_wake)
        self._consumer = HueyConsumer(
            huey, workers=workers, periodic=False, initial_delay=0.02, backoff=1.5, max_delay=POLL_SECONDS
        )
        # huey would take SIGINT, SIGTERM and SIGHUP (which it answers with execl); the dispatcher has its own.
        self._consumer._set_signal_handlers = self._quiet.set

    def start(self) -> None:
        self._consumer.start()

    def check(self) -> None:
        """Replace worker threads that died."""
        self._consumer.check_worker_health()

    def stop(self) -> None:
        """Let the workers finish what they do."""
        self._consumer.stop(graceful=True)
