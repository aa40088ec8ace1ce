"""The pace that all dispatchers of an app share, whoever asks and however many at once."""

import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from machinequeue.dispatch import launch
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.errors import RateLimited
from machinequeue.machines.schema import CreateRequest
from machinequeue.models import Pace, Queue
from machinequeue.records import pacing, queues, runs
from machinequeue.records.pacing import BURST, SharedPace
from tests.integration.conftest import WISH
from tests.workshop import tasks
from tests.world import WORKSHOP, database_url

pytestmark = pytest.mark.django_db

RATE = 50.0
STEP = 1 / RATE


class Clock:
    """A clock of the database that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        monkeypatch.setattr(
            pacing,
            "_clock",
            lambda connection: (
                f"{self.now!r}::double precision" if connection.vendor == "postgresql" else repr(self.now)
            ),
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_burst_is_free_and_then_turns_come_at_the_rate(clock: Clock) -> None:
    pace = SharedPace(1.0)
    given = [pace.reserve("shop", "create", 10) for _ in range(5)]
    assert given == pytest.approx([0, 0, 0.5, 1.5, 2.5], abs=1e-5)
    clock.now += 100
    assert [pace.reserve("shop", "create", 10) for _ in range(3)] == pytest.approx([0, 0, 0.5], abs=1e-5)


def test_apps_and_actions_have_turns_of_their_own(clock: Clock) -> None:
    pace = SharedPace(1.0)
    for app, action in (("shop", "create"), ("shop", "list"), ("store", "create")):
        assert [pace.reserve(app, action, 10) for _ in range(2)] == [0, 0]


def test_a_turn_that_comes_too_late_is_not_taken(clock: Clock) -> None:
    pace = SharedPace(1.0)
    assert [pace.reserve("shop", "create", 1) for _ in range(3)] == pytest.approx([0, 0, 0.5], abs=1e-5)
    late = [pace.reserve("shop", "create", 1) for _ in range(20)]
    assert late == pytest.approx([1.5] * 20, abs=1e-5), "who was turned away pushes nobody further back"
    clock.now += 0.5
    assert pace.reserve("shop", "create", 1) == pytest.approx(1.0, abs=1e-5)


def test_a_429_stops_everybody_for_as_long_as_it_says(clock: Clock) -> None:
    pace = SharedPace(1.0)
    pace.reserve("shop", "create", 10)
    pace.refused("shop", "create", 4)
    assert pace.reserve("shop", "create", 10) == pytest.approx(4, abs=1e-5)
    pace.refused("shop", "create", 1)
    assert pace.reserve("shop", "create", 10) == pytest.approx(5, abs=1e-5), "a shorter penalty shortens nothing"
    pace.refused("shop", "create", 86_400)
    assert 59 < pace.reserve("shop", "create", 10) <= 61


def test_a_clock_that_was_set_back_stops_nobody_for_long(clock: Clock) -> None:
    pace = SharedPace(1.0)
    pace.reserve("shop", "create", 10)
    clock.now -= 86_400
    assert pace.reserve("shop", "create", 10) > 10
    assert pace.reserve("shop", "create", 10) <= 1


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.floats(0, 3), st.floats(0, 5)), min_size=1, max_size=25), rate=st.floats(0.2, 20))
def test_never_more_turns_than_burst_and_rate_allow(
    clock: Clock, steps: list[tuple[float, float]], rate: float
) -> None:
    """In every stretch of time, however calls come and however long each is ready to wait."""
    Pace.objects.all().delete()
    pace, granted = SharedPace(rate), []
    for rest, longest in steps:
        clock.now += rest
        seconds = pace.reserve("shop", "create", longest)
        if seconds <= longest:
            granted.append(clock.now + seconds)
    for first, since in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= BURST + rate * (granted[last] - since) + 1e-3


@pytest.mark.django_db(transaction=True)
def test_however_many_ask_at_once_no_two_get_the_same_turn() -> None:
    pace, turns, lock, threads = SharedPace(RATE), [], threading.Lock(), 8  # type: Any, list[float], Any, int
    start = threading.Barrier(threads)

    def ask() -> None:
        start.wait()
        try:
            for _ in range(10):
                before = time.monotonic()
                seconds = pace.reserve("shop", "create", 60)
                with lock:
                    turns.append((before, time.monotonic() + seconds))
        finally:
            connections.close_all()

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(turns) == 80
    # The last turn cannot come before what the burst leaves has passed at the rate.
    assert max(at for _, at in turns) - min(before for before, _ in turns) >= (80 - BURST) * STEP - 0.001
    assert Pace.objects.count() == 1


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite serves one computer, where one dispatcher is")
def test_two_processes_that_create_together_are_never_told_to_slow_down() -> None:
    script = """
import django, os, sys
django.setup()
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.schema import CreateRequest
from machinequeue.records.pacing import SharedPace
with MachinesClient("shop", token=os.environ["API_TOKEN"], base_url=os.environ["API"], pace=SharedPace(1.0)) as client:
    for number in range(5):
        name = f"{sys.argv[1]}-{number}"
        config = {"image": "shop:1", "init": {"cmd": ["python", "-V"]}, "metadata": {"mq_machine": name}}
        client.create(CreateRequest(name, None, config, skip_launch=True))
"""
    with Emulator(app="shop", images={"shop:1": WORKSHOP}, rate_limits=True) as emulator:
        environment = {
            "PATH": "/usr/bin:/bin",
            "DATABASE_URL": database_url(),
            "DJANGO_SETTINGS_MODULE": "tests.workshop.settings",
            "API": emulator.url,
            "API_TOKEN": emulator.token,
        }
        ours = [
            subprocess.Popen([sys.executable, "-c", script, name], env=environment, stderr=subprocess.PIPE, text=True)
            for name in ("one", "two")
        ]
        for process in ours:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
        creates = [line for line in emulator.journal() if line["kind"] == "request" and line["method"] == "POST"]
        assert Counter(line["status"] for line in creates) == {200: 10}
        assert len({line["name"] for line in creates}) == 10
        assert creates[-1]["at"] - creates[0]["at"] >= (10 - 3) * 1.0 - 0.5, "without a pace it would have been quicker"


def test_a_create_whose_turn_is_far_away_is_not_sent() -> None:
    Pace.objects.create(app="shop", action="create", free_at=time.time() + 30)
    with Emulator(app="shop", images={"shop:1": WORKSHOP}) as emulator:
        with emulator.client(pace=SharedPace(1.0)) as client, pytest.raises(RateLimited) as caught:
            client.create(CreateRequest("m", None, {"image": "shop:1"}))
        assert [line for line in emulator.journal() if line["kind"] == "request"] == []
    assert 25 < caught.value.retry_after <= 30
    assert "not sent" in str(caught.value)


@pytest.mark.usefixtures("woken")
def test_a_run_whose_machine_has_no_turn_yet_waits_and_says_so(settings: Any) -> None:
    result = tasks.add.enqueue(1)
    [group] = runs.due_groups()
    [machine] = queues.reserve(group, WISH).machines
    Pace.objects.create(app="shop", action="create", free_at=time.time() + 30)
    with Emulator(app="shop", images={"shop:1": WORKSHOP}) as emulator:
        settings.MACHINEQUEUE = {"APP": "shop", "API_TOKEN": emulator.token, "API_URL": emulator.url, "API_RATE": 1}
        with launch.open_client() as client:
            launch.Launcher(client).launch(machine)
            assert client.list() == []
    result.refresh()
    assert result.status == "READY"
    queue = Queue.objects.get(name="default")
    assert "not sent: the app's turn for another create comes in" in queue.reasons[group.spec_key]
    assert not queues.reserve(group, WISH).machines, "and nothing more is reserved until then"


def test_a_429_in_spite_of_the_pace_reaches_the_others() -> None:
    config = {"image": "shop:1", "init": {"cmd": ["python", "-V"]}}
    with Emulator(app="shop", images={"shop:1": WORKSHOP}, rate_limits=True) as emulator:
        with emulator.client() as unpaced:
            for number in range(3):
                unpaced.create(CreateRequest(f"m-{number}", None, config, skip_launch=True))
        with emulator.client(pace=SharedPace(1.0)) as client, pytest.raises(RateLimited):
            client.create(CreateRequest("m", None, config))
    assert SharedPace(1.0).reserve("shop", "create", 0.0) > 0.5


@pytest.mark.parametrize(
    ("url", "asked", "rate"),
    [
        ("https://api.machines.dev", {}, 1.0),
        ("http://_api.internal:4280", {}, 1.0),
        ("http://127.0.0.1:4280", {}, None),
        ("http://localhost:4280", {"API_RATE": 2.5}, 2.5),
        ("https://api.machines.dev", {"API_RATE": 0}, None),
    ],
)
def test_the_settings_choose_the_pace(settings: Any, url: str, asked: dict[str, float], rate: float | None) -> None:
    settings.MACHINEQUEUE = {"APP": "shop", "API_TOKEN": "t", "API_URL": url, **asked}
    with launch.open_client() as client:
        assert client._session._pace == (SharedPace(rate) if rate else None)


def test_without_a_pace_nothing_is_asked_of_the_database(django_assert_num_queries: Any) -> None:
    config = {"image": "shop:1", "init": {"cmd": ["python", "-V"]}}
    emulator = Emulator(app="shop", images={"shop:1": WORKSHOP})
    with emulator, emulator.client() as client, django_assert_num_queries(0):
        client.create(CreateRequest("m", None, config))
        client.list()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"API_URL": "http://host:port"}, "FLY_API_HOSTNAME"), ({"API_TOKEN": "half a\ntoken"}, "FLY_API_TOKEN")],
)
def test_a_dispatcher_that_cannot_ask_says_what_to_set(settings: Any, wrong: dict[str, str], says: str) -> None:
    settings.MACHINEQUEUE = {"APP": "shop", "API_TOKEN": "t", "IMAGE": "shop:1", **wrong}
    with pytest.raises(CommandError, match=says) as caught:
        call_command("mq_dispatcher")
    assert "half" not in str(caught.value)
