"""Dispatchers, Redis, the API and the database fail; no run is lost, and each says why it waits."""

import datetime
import signal
from pathlib import Path

import psycopg
import pytest
from django.db import connection, connections
from django.utils import timezone

from machinequeue.models import Dispatcher, Machine, Queue
from machinequeue.records import machines
from tests import services
from tests.integration.conftest import reserved
from tests.ports import free_port
from tests.waiting import until
from tests.workshop import tasks
from tests.world import World


def started(gate: Path) -> list[int]:
    """The pids of the task processes that reached the gate."""
    return [int(mark.name.split(".")[-2]) for mark in gate.parent.glob(f"{gate.name}.*.started")]


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens yet."""
    return free_port()


# Dispatchers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_dispatcher_ends_gracefully_and_its_machines_go_on(empty_shop: World, tmp_path: Path, number: int) -> None:
    dispatcher = empty_shop.dispatcher()
    gate = tmp_path / "gate"
    result = tasks.wait_for.enqueue(str(gate))
    until(lambda: started(gate), 60, empty_shop.said)
    assert dispatcher.end(number) == 0
    assert "Traceback" not in dispatcher.said
    assert "machines finish their runs by themselves" in dispatcher.said
    assert not Dispatcher.objects.exists(), "another may lead at once"
    gate.touch()
    empty_shop.finish(result)
    until(lambda: Machine.objects.get().status == "retiring", 60, empty_shop.said)
    waiting = tasks.add.enqueue(1)
    until(lambda: "no dispatcher is running (none was ever seen)" in waiting.why(), 60, waiting.why)

    empty_shop.dispatcher()
    empty_shop.finish(waiting)


def test_what_a_killed_dispatcher_leaves_another_picks_up(empty_shop: World, tmp_path: Path) -> None:
    dispatcher = empty_shop.dispatcher()
    gate = tmp_path / "gate"
    result = tasks.wait_for.enqueue(str(gate))
    until(lambda: started(gate), 60, empty_shop.said)
    dispatcher.popen.kill()
    dispatcher.popen.wait()
    later = tasks.add.enqueue(1)
    gate.touch()
    empty_shop.dispatcher()
    empty_shop.finish(result, later)


def test_two_dispatchers_launch_once_for_the_same_demand(empty_shop: World) -> None:
    for _ in range(2):
        empty_shop.dispatcher()
    results = [tasks.alone.enqueue() for _ in range(4)]
    empty_shop.finish(*results)
    assert len({result.return_value for result in results}) == 4
    assert Machine.objects.count() == 4
    created = [line for line in empty_shop.emulator.journal() if line["kind"] == "request" and line["method"] == "POST"]
    assert len(created) == 4
    assert Dispatcher.objects.count() == 2
    empty_shop.all_gone()


# What stands around -------------------------------------------------------------------------------------------------


def test_without_redis_runs_flow_by_the_clock(empty_shop: World, closed_port: int) -> None:
    dispatcher = empty_shop.dispatcher(REDIS_URL=f"redis://:not-to-be-told@127.0.0.1:{closed_port}/0")
    result = tasks.add.enqueue(2, 2)
    empty_shop.finish(result)
    assert result.return_value == 4
    assert dispatcher.end() == 0
    assert "not-to-be-told" not in dispatcher.said


def test_while_the_api_is_down_runs_wait_and_say_so(empty_shop: World, tmp_path: Path, closed_port: int) -> None:
    empty_shop.dispatcher(FLY_API_HOSTNAME=f"http://127.0.0.1:{closed_port}")
    result = tasks.add.enqueue(2, 2)
    until(lambda: "no machine could be created (Unreachable)" in result.why(), 60, result.why)
    result.refresh()
    assert (result.run_status, result.attempts) == ("READY", 0)

    second = World(tmp_path, empty_shop.redis_url)
    second.emulator._port = closed_port
    with second.emulator:
        empty_shop.finish(result, seconds=40)
        assert result.return_value == 4
        empty_shop.end_dispatchers()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"FLY_API_TOKEN": "not-the-token-5b"}, ("Unauthorized", "Check FLY_API_TOKEN")),
        ({"FLY_IMAGE_REF": "shop:never-pushed"}, ("ImageNotFound", "use the current release's image")),
    ],
    ids=["token", "image"],
)
def test_with_a_wrong_token_or_image_runs_wait_and_flow_when_it_is_mended(
    empty_shop: World, wrong: dict[str, str], says: tuple[str, str]
) -> None:
    dispatcher = empty_shop.dispatcher(**wrong)
    result = tasks.add.enqueue(2, 2)
    until(lambda: says[0] in result.why(), 60, lambda: (result.why(), empty_shop.said()))
    assert says[1] in result.why()
    assert "not-the-token-5b" not in result.why() + dispatcher.said
    result.refresh()
    assert (result.run_status, result.attempts) == ("READY", 0)
    assert dispatcher.end() == 0

    empty_shop.dispatcher()
    Queue.objects.update(launch_after=timezone.now() - datetime.timedelta(seconds=1))  # the pause is over
    empty_shop.finish(result)
    assert result.return_value == 4


def test_a_database_that_is_away_for_a_moment_costs_no_run(empty_shop: World, tmp_path: Path) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("a file is not away")
    dispatcher = empty_shop.dispatcher()
    gate = tmp_path / "gate"
    running = tasks.wait_for.enqueue(str(gate))
    until(lambda: started(gate), 60, empty_shop.said)
    waiting = tasks.add.using(queue_name="reports").enqueue(1, 1)
    name = connection.settings_dict["NAME"]
    connections.close_all()
    with psycopg.connect(services.postgres(), autocommit=True) as server:
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')  # type: ignore[arg-type]
        try:
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            gate.touch()
            until(lambda: "database.unreachable" in dispatcher.said, 60, lambda: dispatcher.said)
        finally:
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')  # type: ignore[arg-type]
    empty_shop.finish(running, waiting)
    assert (running.return_value, running.attempts, waiting.return_value) == ("the gate is open", 1, 2)
    assert dispatcher.popen.poll() is None


# Too late -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("woken")
@pytest.mark.parametrize("why", ["given up", "unknown"])
def test_a_machine_that_boots_after_it_was_given_up_exits_without_running(empty_shop: World, why: str) -> None:
    result = tasks.add.enqueue(1, 1)
    machine = reserved(result)
    machines.gone(machine, state="destroyed", exit_event=None)
    name = machine.name if why == "given up" else "mq-nobody"
    late = empty_shop.command("mq_run", name)
    assert late.popen.wait(60) == 0, late.said
    assert "machine.late" in late.said
    assert f"No row for machine {name} in database {connections['default'].settings_dict['NAME']} at " in late.said
    result.refresh()
    assert (result.run_status, result.attempts) == ("READY", 0)
