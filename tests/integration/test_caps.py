"""At the caps: who makes room for whom, machines that are kept, images that are replaced."""

import dataclasses
import datetime
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone

from machinequeue import conf
from machinequeue.models import Machine, TaskRun
from machinequeue.records import dispatchers, machines, queues, runs
from tests.integration.conftest import WISH, check_in, checked_in, claim, reserved
from tests.workshop import tasks


@pytest.fixture(autouse=True)
def _dispatcher(db: None) -> None:
    dispatchers.seen("a dispatcher")


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("woken")]

TIGHT = dataclasses.replace(WISH, max_of_queue=1)


def consider(wish: queues.Wish = TIGHT) -> list[Machine]:
    return [machine for group in runs.due_groups() for machine in queues.reserve(group, wish).machines]


def status(by: Any) -> str:
    return Machine.objects.get(pk=by.machine_id).status


def test_an_idle_machine_of_another_spec_makes_room() -> None:
    by = checked_in(tasks.add.enqueue(1))
    assert claim(by)
    machines.idle(by.machine_id, by.boot_id, 1)
    big = tasks.add.using(memory_mb=1024).enqueue(2)
    assert consider() == []
    assert status(by) == "retiring"
    assert "makes room for more urgent runs of queue default" in Machine.objects.get().reason
    assert consider() == [], "it counts until it is gone"
    machines.gone(Machine.objects.get(), state="destroyed", exit_event=None)
    [launched] = consider()
    assert launched.spec_key == TaskRun.objects.get(pk=big.id).spec_key


def test_a_busy_machine_takes_nothing_more_when_a_more_urgent_run_waits() -> None:
    by = checked_in(tasks.add.enqueue(1))
    assert claim(by)
    tasks.add.enqueue(2)
    tasks.add.using(memory_mb=1024, priority=5).enqueue(3)
    consider()
    assert status(by) == "retiring"
    assert claim(by) is None


def test_a_less_urgent_run_waits_for_its_turn() -> None:
    by = checked_in(tasks.add.using(priority=5).enqueue(1))
    assert claim(by)
    tasks.add.using(priority=5).enqueue(2)
    low = tasks.add.using(memory_mb=1024).enqueue(3)
    consider()
    assert status(by) == "busy"
    assert low.why() == "waiting: 1 of 1 machines busy in queue default"


def test_no_more_machines_retire_than_are_needed() -> None:
    wish = dataclasses.replace(WISH, max_of_queue=3)
    up = [checked_in(tasks.add.enqueue(number)) for number in range(3)]
    for by in up:
        assert claim(by)
        machines.idle(by.machine_id, by.boot_id, 1)
    tasks.add.using(memory_mb=1024).enqueue(9)
    consider(wish)
    consider(wish)
    assert sorted(map(status, up)) == ["idle", "idle", "retiring"]


def kept() -> runs.Group:
    spec = conf.spec_of(conf.policy("default", "default"), "")
    return runs.Group("default", "default", conf.spec_key(spec), 0, spec, None)


def test_machines_are_kept_and_replaced_as_they_age() -> None:
    made = queues.keep(kept(), WISH, 2, 60.0).machines
    assert len(made) == 2
    assert queues.keep(kept(), WISH, 2, 60.0).machines == []
    Machine.objects.filter(pk=made[0].pk).update(deadline_at=timezone.now() + datetime.timedelta(seconds=30))
    assert len(queues.keep(kept(), WISH, 2, 60.0).machines) == 1
    assert queues.keep(kept(), dataclasses.replace(WISH, max_of_queue=3), 5, 60.0).machines == []


def test_a_kept_machine_claims_what_comes() -> None:
    [machine] = queues.keep(kept(), WISH, 1, 60.0).machines
    by = check_in(machine)
    assert claim(by) is None
    tasks.add.enqueue(1)
    assert claim(by) is not None


def test_kept_queues_are_those_whose_policy_says_so() -> None:
    backend = {"BACKEND": conf.BACKEND, "QUEUES": {"default": {}, "warm": {"min_machines": 2}}}
    with override_settings(TASKS={"default": backend}):
        assert [(alias, name, policy.min_machines) for alias, name, policy in conf.kept_queues()] == [
            ("default", "warm", 2)
        ]


def test_machines_of_an_older_image_are_named_unless_their_runs_are_pinned_to_it() -> None:
    with override_settings(MACHINEQUEUE={"IMAGE": "shop:1"}):
        usual, pinned = tasks.add.enqueue(1), tasks.add.using(image="same").enqueue(2)
    rows = [check_in(reserved(each)).machine_id for each in (usual, pinned)]
    assert [row.pk for row in machines.other_images("shop:2")] == rows[:1]
    assert machines.other_images("shop:1") == []
    assert TaskRun.objects.get(pk=pinned.id).spec["image"] == "shop:1"


@pytest.mark.parametrize(("connections", "most"), [(0, 20), (7, 2), (600, 20)])
def test_machines_are_bounded_by_the_connections_that_the_database_has_for_them(connections: int, most: int) -> None:
    with override_settings(MACHINEQUEUE={"DATABASE_CONNECTIONS": connections}):
        assert conf.most_machines(conf.settings()) == most


@pytest.mark.parametrize("how", ["idle", "booted"])
def test_a_frozen_machine_is_not_counted_on(how: str) -> None:
    by = checked_in(tasks.add.enqueue(1))
    if how == "idle":
        machines.idle(by.machine_id, by.boot_id, 0)
    assert consider(WISH) == []
    long_ago = timezone.now() - datetime.timedelta(minutes=40)
    Machine.objects.update(seen_at=long_ago, booted_at=long_ago)
    assert len(consider(WISH)) == 1


def test_a_run_that_may_take_longer_than_machines_live_gets_a_machine_that_lives_longer() -> None:
    tasks.add.using(timeout=3000).enqueue(1)
    [group] = runs.due_groups()
    assert group.timeout == 3000
