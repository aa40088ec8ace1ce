"""Redis and PostgreSQL are killed, restarted and choked while runs are under way."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from machinequeue.models import TaskRun
from tests.acceptance.test_embedded import finished
from tests.crash import checker, servers
from tests.crash.scene import Scene, environment
from tests.waiting import until
from tests.workshop import ledger
from tests.world import World, forget_wakeups

postgresql_only = pytest.mark.skipif(
    "connection.vendor == 'sqlite'", reason="shows what happens to connections, which SQLite has none of"
)


def history(result: Any) -> list[str]:
    result.refresh()
    return [each["status"] for each in result.history]


# --- Redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis() -> Iterator[servers.Redis]:
    with servers.Redis() as server:
        yield server


@pytest.fixture
def wakes_by_redis(scene: Scene) -> None:
    """Where SQLite stands behind the ORM, the scene's wake-ups go through a file."""
    if not scene.world.redis_url:
        pytest.skip("wake-ups go through a file here")


@pytest.fixture(scope="module")
def redis_url(redis: servers.Redis) -> str:
    """What the scene's processes use, in place of the Redis of the other tests."""
    return redis.url


def killed(redis: servers.Redis) -> None:
    redis.end()


def killed_and_restarted(redis: servers.Redis) -> None:
    redis.end()
    redis.start()


BROKEN: dict[str, Callable[[servers.Redis], object]] = {
    "killed": killed,
    "killed and restarted": killed_and_restarted,
    "flushed": servers.Redis.flush,
    "full": servers.Redis.refuse_writes,
}


@pytest.mark.usefixtures("wakes_by_redis")
@pytest.mark.parametrize("how", BROKEN)
def test_redis_is(scene: Scene, redis: servers.Redis, tmp_path: Path, how: str) -> None:
    gate = tmp_path / "gate"
    running = scene.enqueue(ledger.job, gate=str(gate))
    scene.started(running)
    BROKEN[how](redis)
    try:
        waiting = [scene.enqueue(ledger.job) for _ in range(3)]
        scene.world.finish(*waiting, seconds=15)
        gate.touch()
        scene.world.finish(running, seconds=15)
    finally:
        redis.start()
        redis.refuse_writes(False)
    verdict = scene.drained()
    assert verdict.good, str(verdict)
    assert (verdict.runs, verdict.executions) == (4, 4)
    assert all(history(result) == ["succeeded"] for result in (running, *waiting))


@pytest.mark.usefixtures("wakes_by_redis")
def test_wake_ups_that_vanish_are_not_missed(scene: Scene, redis: servers.Redis) -> None:
    """Nobody receives: what was enqueued while no dispatcher ran and then flushed is found by its rows."""
    scene.end_dispatchers()
    forget_wakeups()  # that Redis was away a moment ago, so that the next message is tried
    waiting = [scene.enqueue(ledger.job) for _ in range(3)]
    with redis.client() as client:
        until(lambda: client.dbsize() == 1, 60)  # one wake-up for the three
        client.flushall()
    scene.start_dispatchers()
    verdict = scene.drained()
    assert verdict.good, str(verdict)
    assert all(history(result) == ["succeeded"] for result in waiting)


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@postgresql_only
def test_every_connection_is_ended_while_a_run_is_under_way(scene: Scene, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = scene.enqueue(ledger.job, gate=str(gate))
    scene.started(result)
    run = TaskRun.objects.get(pk=result.id)
    for _ in range(3):
        leased = run.lease_expires_at
        assert servers.end_connections(scene.world.url, but=connection.connection.info.backend_pid) >= 2
        until(lambda before=leased: run.refresh_from_db() or run.lease_expires_at != before, 60, scene.world.said)
    servers.end_connections(scene.world.url, but=connection.connection.info.backend_pid)
    gate.touch()
    verdict = scene.drained()
    assert verdict.good, str(verdict)
    assert (verdict.executions, history(result)) == (1, ["succeeded"])


TICKS = {"restarted at once": 0, "away for a while": 4, "away past every lease": 30}
"""How often the dispatcher looks in vain; four times a second."""


@pytest.mark.slow
@postgresql_only
@pytest.mark.parametrize("how", TICKS)
def test_the_server_crashes_while_runs_are_under_way(tmp_path: Path, how: str) -> None:
    """The database is on a server of the test's own, which is ended without a goodbye to its connections."""
    gate = tmp_path / "gate"
    more = environment(tmp_path, {"LEASE_SECONDS": 3, "SILENT_SECONDS": 3})
    with contextlib.ExitStack() as exits:
        postgres = exits.enter_context(servers.Postgres())
        world = World(tmp_path, "", url=postgres.url, more=more)
        scene = Scene(world)
        exits.enter_context(world.emulator)
        exits.callback(scene.end_dispatchers)
        finished(world.command("migrate", "--verbosity", "0"))
        scene.start_dispatchers()
        finished(world.command("enqueue", "3", "--gate", str(gate)))
        scene.wait(lambda: len(scene.lines("start")) == 3, "not all have begun")
        postgres.end(signal.SIGQUIT)
        scene.wait(lambda: scene.crew[0].said.count("database.unreachable") >= TICKS[how], "nobody noticed")
        if how == "away for a while":
            gate.touch()
            scene.wait(lambda: len(scene.lines("end")) == 3, "the tasks go on without a database")
        postgres.start()
        finished(world.command("enqueue", "1"))
        gate.touch()
        verdict = scene.drained()
        assert verdict.good, str(verdict)
        assert (verdict.runs, verdict.executions, verdict.repeated) == (4, 4, 0)
        rows = checker.read_rows(postgres.url)
        assert [attempt["status"] for attempt in rows.attempts] == ["succeeded"] * 4
        assert "Traceback" not in world.said()
