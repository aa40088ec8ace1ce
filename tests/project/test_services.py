"""The servers under the tests: found or started, and nobody else's data touched."""

import os

import psycopg
import pytest
import redis

from tests import services
from tests.waiting import until


@pytest.fixture
def nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)


@pytest.mark.usefixtures("nothing_running")
def test_a_postgres_of_our_own_starts_where_none_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[services.subprocess.Popen[bytes]] = []
    monkeypatch.setattr(services.atexit, "register", lambda call, *args, **_: ends.append(args[0]))
    url = services._start_postgres()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    folder, server = ends
    services._end(server)
    services.shutil.rmtree(str(folder))
    assert server.returncode is not None
    assert not services._postgres_answers(url)


@pytest.mark.usefixtures("nothing_running")
def test_a_redis_of_our_own_starts_where_none_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[services.subprocess.Popen[bytes]] = []
    monkeypatch.setattr(services.atexit, "register", lambda call, *args, **_: ends.append(args[0]))
    url = services._start_redis()
    assert services._redis_answers(url)
    folder, server = ends
    services._end(server)
    services.shutil.rmtree(str(folder))
    assert not services._redis_answers(url)


def test_a_database_is_dropped_at_the_end() -> None:
    with services.postgres_database() as url, psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE marks (n int)")
        connection.commit()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_redis_databases_of_others_are_passed_over() -> None:
    with services.redis_database() as first, services.redis_database() as second:
        assert first != second
        with redis.Redis.from_url(first) as client:
            client.set("kept", 1)
        with services.redis_database() as third:
            assert third not in (first, second)
        with redis.Redis.from_url(first) as client:
            assert client.get("kept") == b"1"


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hidden-word@127.0.0.1:1/0")
    with pytest.raises(services.ServiceMissing, match=r"127\.0\.0\.1:1, where no server answers") as caught:
        services.redis.__wrapped__()
    assert "hidden-word" not in str(caught.value)


def test_a_missing_program_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.shutil, "which", lambda _name: None)
    with pytest.raises(services.ServiceMissing, match="Install the package redis-server, or set REDIS_URL"):
        services._binary("redis-server", "redis-server", [])


def test_a_claim_of_a_dead_run_is_taken_over_when_nobody_of_it_is_left() -> None:
    with services.redis_database() as url:
        with redis.Redis.from_url(url) as client:
            client.set("left", "behind")
            client.set(services.CLAIM, f"{services.socket.gethostname()} 4194305")  # above the largest process id
            assert not services._claim(url), "a dispatcher that outlived its test run would take wake-ups"
        until(lambda: services._claim(url))  # the server may see only later that the client has gone
        with redis.Redis.from_url(url) as client:
            assert client.get("left") is None
            assert client.get(services.CLAIM) == f"{services.socket.gethostname()} {os.getpid()}".encode()
