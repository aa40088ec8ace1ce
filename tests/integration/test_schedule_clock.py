"""Dispatchers are the clock: several at once, killed and started again at any moment; each tick is enqueued once."""

import random
import signal
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from machinequeue.models import Schedule, ScheduleTick, TaskRun
from machinequeue.records import queues, runs
from machinequeue.records import schedules as rows
from machinequeue.records.schedules import Entry
from tests.waiting import until
from tests.workshop.faults import SCHEDULER
from tests.world import Process, World

pytestmark = pytest.mark.timeout(420)  # processes that boot again and again, on a computer that has other work too

SECOND = timedelta(seconds=1)
SCHEDULES = 10
TICKS = 200
DEADLINE = 240


def hold_machines() -> None:
    """Let no machine be launched: these tests are about what is enqueued."""
    queues._ensure("default", "default")
    [pk] = [queue.pk for queue in queues.Queue.objects.filter(backend="default", name="default")]
    assert queues.set_paused(pk, paused=True)


def each_second(name: str) -> Schedule:
    row = rows.create(
        name,
        Entry(task="tests.workshop.tasks.add", args=[1], every_seconds=1.0, misfire="all", misfire_limit=1000),
    )
    assert row is not None
    return row


def check(row: Schedule) -> int:
    """That the ticks of a schedule have no hole and each has one run; how many they are."""
    ticks = list(ScheduleTick.objects.filter(schedule=row).order_by("due_at").values_list("due_at", "run_id"))
    first = ticks[0][0]
    assert [due_at for due_at, _ in ticks] == [first + number * SECOND for number in range(len(ticks))]
    made = TaskRun.objects.filter(metadata__schedule=row.name)
    scheduled = {run.pk: run.metadata["scheduled_at"] for run in made}
    assert scheduled == {run_id: due_at.isoformat() for due_at, run_id in ticks}
    return len(ticks)


@pytest.mark.slow
def test_two_hundred_ticks_through_dispatchers_that_are_killed_at_random(empty_shop: World) -> None:
    hold_machines()
    made = [each_second(f"second {number}") for number in range(SCHEDULES)]
    chance = random.Random(20261025)
    alive: list[Process] = [empty_shop.dispatcher(), empty_shop.dispatcher()]
    killed, clock = 0, threading.Event()

    def enough() -> bool:
        return ScheduleTick.objects.count() >= TICKS and killed >= 4

    begin = runs.database_now()
    while not enough():
        assert runs.database_now() - begin < DEADLINE * SECOND, empty_shop.said()
        victim = alive.pop(chance.randrange(len(alive)))
        if chance.random() < 0.7:
            victim.popen.kill()
            victim.popen.wait()
        else:
            victim.end()
        killed += 1
        clock.wait(chance.random())  # when it is killed within its second is left to chance
        alive.append(empty_shop.dispatcher())
    assert killed >= 4
    for process in alive:
        assert process.end() == 0, process.said
    assert sum(check(row) for row in made) >= TICKS
    assert ScheduleTick.objects.count() == TaskRun.objects.count()


@pytest.mark.parametrize("point", SCHEDULER)
def test_a_dispatcher_killed_around_the_commit_leaves_the_rest_to_another(
    empty_shop: World, tmp_path: Path, point: str
) -> None:
    hold_machines()
    row = each_second("killed")
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / point).write_text("kill")
    victim = empty_shop.command("mq_dispatcher", WORKSHOP_FAULTS=str(faults))
    assert victim.popen.wait(60) == -signal.SIGKILL, victim.said
    assert (faults / f"{point}.fired").exists()
    left = ScheduleTick.objects.count()
    assert TaskRun.objects.count() == left
    assert (left > 0) == (point == "scheduler.after_tick")
    heir = empty_shop.dispatcher()
    until(lambda: ScheduleTick.objects.count() > left + 3, 60, empty_shop.said)
    assert heir.end() == 0, heir.said
    check(row)
