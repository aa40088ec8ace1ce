"""Wake-ups over a real Redis and over a file, and what an enqueue costs when nobody answers."""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_client

from machinequeue import wakeups
from machinequeue.models import TaskRun
from tests import ports
from tests.workshop import tasks

Choose = Callable[..., None]

# huey closes the SQLite connections of its threads by letting them go.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")


@pytest.fixture
def redis_url(redis_url: str) -> str:
    """All tests of a worker share one Redis database, and any of them may have left a wake-up that nobody took."""
    with redis_client.Redis.from_url(redis_url) as client:
        client.delete("nothing", *client.scan_iter("huey*"))
    return redis_url


@pytest.fixture(params=["redis", "file"])
def transport(request: pytest.FixtureRequest, fresh_wakeups: Choose) -> str:
    """The URL of the transport in use; empty for the file."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    fresh_wakeups(url)
    return str(url)


@pytest.fixture
def heard(transport: str) -> Iterator[queue.Queue[tuple[str, str]]]:
    """What a consumer in this process receives."""
    received: queue.Queue[tuple[str, str]] = queue.Queue()
    consumer = wakeups.Consumer(lambda backend, name: received.put((backend, name)), workers=2)
    consumer.start()
    yield received
    consumer.stop()


def test_a_wake_up_arrives_soon(heard: queue.Queue[tuple[str, str]]) -> None:
    assert wakeups.wake("default", "reports")
    assert heard.get(timeout=60) == ("default", "reports")
    assert wakeups.wake("default", "reports"), "the same again is no repetition once it was received"
    assert heard.get(timeout=60) == ("default", "reports")


def test_wake_ups_sent_before_anybody_listens_are_kept_and_a_burst_is_one(transport: str) -> None:
    for _ in range(50):
        assert wakeups.wake("default", "default")
    assert wakeups.wake("default", "reports")
    received: queue.Queue[tuple[str, str]] = queue.Queue()
    consumer = wakeups.Consumer(lambda backend, name: received.put((backend, name)), workers=1)
    consumer.start()
    try:
        assert {received.get(timeout=60), received.get(timeout=60)} == {("default", "default"), ("default", "reports")}
    finally:
        consumer.stop()
    assert received.empty()


def test_a_consumer_survives_a_handler_that_raises(transport: str) -> None:
    received: queue.Queue[str] = queue.Queue()

    def handle(backend: str, name: str) -> None:
        received.put(name)
        if name == "bad":
            raise RuntimeError("a bug")

    consumer = wakeups.Consumer(handle, workers=1)
    consumer.start()
    try:
        wakeups.wake("default", "bad")
        assert received.get(timeout=60) == "bad"
        wakeups.wake("default", "good")
        assert received.get(timeout=60) == "good"
    finally:
        consumer.stop()


def test_what_travels_through_redis_is_json_and_no_pickle(redis_url: str, fresh_wakeups: Choose) -> None:
    fresh_wakeups(redis_url)
    with redis_client.Redis.from_url(redis_url) as client:
        client.delete(*(client.keys("huey*") or [b"nothing"]))
        assert wakeups.wake("default", "reports")
        [key] = client.keys("huey*")
        [member] = client.zrange(key, 0, -1)
        client.delete(key)
    fields = json.loads(member[8:])  # huey takes eight bytes off before it reads a message
    assert "default" in json.dumps(fields)
    assert "reports" in json.dumps(fields)


def test_a_pickle_in_redis_is_not_run(redis_url: str, fresh_wakeups: Choose, tmp_path: Any) -> None:
    fresh_wakeups(redis_url)
    trap = tmp_path / "trap"
    pickled = b"cposix\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    received: queue.Queue[str] = queue.Queue()
    with redis_client.Redis.from_url(redis_url) as client:
        wakeups.wake("default", "default")
        [key] = client.keys("huey*")
        client.delete(key)
        client.zadd(key, {bytes(8) + pickled: -1})
        consumer = wakeups.Consumer(lambda backend, name: received.put(name), workers=1)
        consumer.start()
        try:
            wakeups.wake("default", "after")
            assert received.get(timeout=60) == "after"
        finally:
            consumer.stop()
    assert not trap.exists()


@pytest.mark.django_db(transaction=True)
def test_wake_ups_are_sent_by_a_thread_merged_and_after_a_fork_too(
    redis_url: str, fresh_wakeups: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_wakeups(redis_url)
    sent: list[tuple[str, str, str]] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(backend: str, name: str) -> bool:
        sent.append((backend, name, threading.current_thread().name))
        begun.set()
        return go_on.wait(60)

    monkeypatch.setattr(wakeups, "wake", slow)
    wakeups.wake_soon("default", "default")
    assert begun.wait(60)
    for _ in range(50):
        wakeups.wake_soon("default", "default")
        wakeups.wake_soon("default", "reports")
    assert not wakeups.flush(0)
    go_on.set()
    assert wakeups.flush(10)
    assert [(backend, name) for backend, name, _ in sent] == [
        ("default", "default"),
        ("default", "default"),
        ("default", "reports"),
    ]
    assert {thread for _, _, thread in sent} == {"machinequeue-wakeups"}
    before = wakeups._outbox
    wakeups._new_outbox()  # what a fork does in the child
    wakeups.wake_soon("default", "default")
    assert wakeups.flush(10)
    assert len(sent) == 4
    assert wakeups._outbox is not before


def test_a_process_that_ends_at_once_still_sends_its_wake_up(redis_url: str, fresh_wakeups: Choose) -> None:
    fresh_wakeups(redis_url)
    received: queue.Queue[str] = queue.Queue()
    program = "import django; django.setup(); from machinequeue import wakeups; wakeups.wake_soon('default', 'reports')"
    environment = {**os.environ, "REDIS_URL": redis_url, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    consumer = wakeups.Consumer(lambda backend, name: received.put(name), workers=1)
    consumer.start()
    try:
        assert received.get(timeout=60) == "reports"
    finally:
        consumer.stop()


def test_a_machine_sends_no_wake_ups(monkeypatch: pytest.MonkeyPatch, fresh_wakeups: Choose) -> None:
    fresh_wakeups()
    monkeypatch.setenv("MACHINEQUEUE_MACHINE", "mq-1")
    assert not wakeups.wake("default", "default")


# Redis that does not answer -----------------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    return ports.closed_port()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield int(listener.getsockname()[1])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("port", ["closed_port", "silent_port"])
def test_an_enqueue_without_redis_is_written_soon_and_the_breaker_opens(
    port: str, request: pytest.FixtureRequest, fresh_wakeups: Choose, caplog: Any
) -> None:
    secret = "redis-password-7"
    fresh_wakeups(f"redis://:{secret}@127.0.0.1:{request.getfixturevalue(port)}/0")
    begin = time.monotonic()
    first = tasks.add.enqueue(1)
    assert time.monotonic() - begin < 15, "a thread waits for Redis, and what a busy computer adds"
    assert wakeups.flush(60)
    assert "wakeup.unreachable" in caplog.text
    assert secret not in caplog.text

    caplog.clear()
    begin = time.monotonic()
    ids = {first.id, *(tasks.add.enqueue(number).id for number in range(20))}
    assert time.monotonic() - begin < 15, "an open breaker tries nothing"
    assert caplog.text == ""
    assert {str(pk) for pk in TaskRun.objects.values_list("pk", flat=True)} == ids


def test_the_breaker_closes_again_after_a_while(closed_port: int, redis_url: str, fresh_wakeups: Choose) -> None:
    fresh_wakeups(f"redis://127.0.0.1:{closed_port}/0")
    assert not wakeups.wake("default", "default")
    assert 0 < wakeups._breaker.closed_at - time.monotonic() <= wakeups.BREAKER_SECONDS
    closed_at = wakeups._breaker.closed_at
    fresh_wakeups(redis_url)
    wakeups._breaker.closed_at = closed_at
    assert not wakeups.wake("default", "default"), "nothing is tried while it is open"
    wakeups._breaker.closed_at = time.monotonic()
    assert wakeups.wake("default", "default")
