"""Reserving machines: whoever asks and however many at once, never over a cap and never twice for one run."""

import datetime
import threading
from dataclasses import replace
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from machinequeue.models import Attempt, Machine, Queue, TaskProfile
from machinequeue.records import dispatchers, machines, profiles, queues, runs
from tests.integration.conftest import WISH, check_in, claim
from tests.workshop import tasks

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("woken")]


def only_group() -> runs.Group:
    [group] = runs.due_groups()
    return group


def at_once(calls: int, act: Any) -> list[Any]:
    """The results of so many threads that begin together."""
    start, results = threading.Barrier(calls), []

    def work() -> None:
        start.wait()
        try:
            results.append(act())
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("due", "of_queue", "of_all", "expected"), [(1, 10, 20, 1), (5, 10, 20, 5), (30, 4, 20, 4), (30, 10, 3, 3)]
)
def test_any_number_of_dispatchers_reserve_once_for_the_same_demand(
    due: int, of_queue: int, of_all: int, expected: int
) -> None:
    tasks.add.enqueue_many([((number,), {}) for number in range(due)])
    group, wish = only_group(), replace(WISH, max_of_queue=of_queue, max_of_all=of_all)
    reservations = at_once(8, lambda: queues.reserve(group, wish))
    assert len(reservations) == 8
    assert sum(len(each.machines) for each in reservations) == Machine.objects.count() == expected
    assert len(set(Machine.objects.values_list("name", flat=True))) == expected


def test_a_run_that_is_claimed_while_machines_are_counted_gets_no_second_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks.add.enqueue(1)
    group = only_group()
    [machine] = queues.reserve(group, WISH).machines
    by, count = check_in(machine), queues._supply

    def claimed_meanwhile(*args: Any) -> Any:
        assert claim(by) is not None
        return count(*args)

    monkeypatch.setattr(queues, "_supply", claimed_meanwhile)
    assert queues.reserve(group, WISH).machines == []


@pytest.mark.django_db(transaction=True)
def test_the_cap_over_all_queues_holds_across_queues() -> None:
    for task in (tasks.add, tasks.warm, tasks.alone, tasks.report):
        for _ in range(3):
            task.enqueue(1) if task in (tasks.add, tasks.report) else task.enqueue()
    groups = runs.due_groups()
    assert len(groups) == 4
    wish = replace(WISH, max_of_all=5)
    waiting = iter(groups * 2)
    lock = threading.Lock()

    def act() -> Any:
        with lock:
            group = next(waiting)
        return queues.reserve(group, wish)

    at_once(8, act)
    assert Machine.objects.count() == 5


def test_a_reserved_machine_knows_what_it_is_for() -> None:
    result = tasks.report.enqueue(42)
    [machine] = queues.reserve(only_group(), WISH).machines
    assert machine.name.startswith("mq-reports-")
    assert len(machine.name) <= 63
    row = Machine.objects.get()
    assert (row.status, row.queue, row.image, row.app) == ("reserved", "reports", "shop:1", "shop")
    assert str(row.launched_for_id) == result.id
    assert row.spec["memory_mb"] == 4096
    assert 3590 < (row.deadline_at - timezone.now()).total_seconds() < 3610


def test_the_reason_why_a_run_waits_is_written_where_it_is_decided() -> None:
    result = tasks.add.enqueue(1)
    assert "no dispatcher is running (none was ever seen); start one with manage.py mq_dispatcher" in result.why()
    dispatchers.seen("d1")
    assert result.why() == "waiting: a dispatcher will see it within a second"
    queues.reserve(only_group(), WISH)
    assert result.why() == "waiting: a machine is being launched"
    queues.reserve(only_group(), WISH)
    assert result.why() == "waiting: 1 machine is booting"
    tasks.add.enqueue(2)
    queues.reserve(only_group(), replace(WISH, max_of_queue=1))
    assert result.why() == "waiting: 1 of 1 machines busy in queue default"


def test_a_failed_launch_says_why_pauses_the_queue_and_fails_no_run() -> None:
    result = tasks.add.enqueue(1)
    dispatchers.seen("d1")
    group = only_group()
    [machine] = queues.reserve(group, WISH).machines
    assert machines.requesting(machine)
    assert not machines.requesting(machine), "one dispatcher makes the call"
    assert machines.refused(machine, "no token", [])
    queues.launch_failed(machine, "the token is wrong. Check FLY_API_TOKEN", pause_seconds=30)
    assert result.why() == "waiting: the token is wrong. Check FLY_API_TOKEN"
    assert queues.reserve(group, WISH).machines == []
    assert queues.failures(machine) == 1

    Queue.objects.update(launch_after=timezone.now() - datetime.timedelta(seconds=1))
    [machine] = queues.reserve(group, WISH).machines
    queues.launched(machine)
    assert queues.failures(machine) == 0
    result.refresh()
    assert result.run_status == "READY"


def test_short_runs_share_the_machines_that_a_boot_is_worth() -> None:
    TaskProfile.objects.create(task="tests.workshop.tasks.add", run_seconds=0.1)
    first = tasks.add.enqueue(0)
    [machine] = queues.reserve(only_group(), WISH).machines
    Machine.objects.update(requested_at=timezone.now() - datetime.timedelta(seconds=2))
    by = check_in(machine)
    assert claim(by)
    tasks.add.enqueue_many([((number,), {}) for number in range(60)])
    reservation = queues.reserve(only_group(), WISH)
    assert len(reservation.machines) in (2, 3), "60 runs of 0.1 s in boots of 2 s, less the busy one"
    assert first.id


def test_a_machine_that_is_long_at_one_run_is_not_counted_on_for_short_ones() -> None:
    TaskProfile.objects.create(task="tests.workshop.tasks.add", run_seconds=0.1)
    tasks.wait_for.enqueue("gate")
    [machine] = queues.reserve(only_group(), WISH).machines
    Machine.objects.update(requested_at=timezone.now() - datetime.timedelta(seconds=2))
    assert claim(check_in(machine))
    tasks.add.enqueue(1)
    assert queues.reserve(only_group(), WISH).reason == "1 busy machine will be free soon"
    Attempt.objects.update(claimed_at=timezone.now() - datetime.timedelta(seconds=3))
    assert len(queues.reserve(only_group(), WISH).machines) == 1


def test_runs_that_want_a_machine_for_themselves_get_one_each_however_short() -> None:
    TaskProfile.objects.create(task="tests.workshop.tasks.alone", run_seconds=0.1)
    tasks.alone.enqueue()
    [machine] = queues.reserve(only_group(), WISH).machines
    Machine.objects.update(requested_at=timezone.now() - datetime.timedelta(seconds=5))
    assert claim(check_in(machine))
    for _ in range(3):
        tasks.alone.enqueue()
    assert len(queues.reserve(only_group(), WISH).machines) == 3


def test_profiles_are_learned_from_runs() -> None:
    profiles.learn("a.task", 2, 4.0, 100)
    profiles.learn("a.task", 40, 400.0, None)
    profile = TaskProfile.objects.get()
    assert (profile.runs, profile.peak_memory_mb) == (42, 100)
    assert profile.run_seconds == pytest.approx(6.0)


def test_nothing_due_reserves_nothing() -> None:
    tasks.add.enqueue(1)
    group = only_group()
    runs.cancel(group.first)
    assert queues.reserve(group, WISH).machines == []
    assert runs.due_groups() == []


def test_the_most_urgent_group_comes_first() -> None:
    tasks.add.using(priority=-3).enqueue(1)
    tasks.warm.using(priority=8).enqueue()
    tasks.alone.enqueue()
    tasks.add.using(run_after=datetime.timedelta(hours=1), priority=90).enqueue(1)
    assert [(group.queue, group.due) for group in runs.due_groups()] == [("warm", 1), ("alone", 1), ("default", 1)]


# Dispatchers --------------------------------------------------------------------------------------------------------


def test_one_dispatcher_leads_at_a_time() -> None:
    for name in ("d1", "d2"):
        dispatchers.seen(name)
    assert dispatchers.lead("d1", 10)
    assert not dispatchers.lead("d2", 10)
    assert dispatchers.lead("d1", 10)
    dispatchers.leave("d1")
    assert dispatchers.lead("d2", 10)


@pytest.mark.django_db(transaction=True)
def test_many_dispatchers_that_ask_at_once_have_one_leader() -> None:
    names = [f"d{number}" for number in range(6)]
    for name in names:
        dispatchers.seen(name)
    waiting, lock = iter(names), threading.Lock()

    def ask() -> bool:
        with lock:
            name = next(waiting)
        return dispatchers.lead(name, 10)

    assert at_once(6, ask).count(True) == 1


def test_the_image_of_the_newest_release_is_current() -> None:
    assert dispatchers.current_image() == ""
    dispatchers.announce("shop:1", 1)
    dispatchers.announce("shop:2", 2)
    dispatchers.announce("shop:1", 1)
    assert dispatchers.current_image() == "shop:2", "an older dispatcher that restarts changes nothing"
    dispatchers.announce("shop:1", 3)
    assert dispatchers.current_image() == "shop:1", "a rollback is a newer release"


# Machines -----------------------------------------------------------------------------------------------------------


def test_a_machine_goes_from_reserved_to_gone() -> None:
    tasks.add.enqueue(1)
    [machine] = queues.reserve(only_group(), WISH).machines
    assert machines.requesting(machine)
    assert machines.created(machine, fly_id="abc", region="iad", state="created", request_ids=["r1"])
    row = Machine.objects.get()
    assert (row.status, row.fly_id, row.region, row.state, row.request_ids) == (
        "created",
        "abc",
        "iad",
        "created",
        ["r1"],
    )
    by = check_in(machine)
    assert Machine.objects.get().status == "booted"
    assert machines.idle(by.machine_id, by.boot_id, 0)
    assert Machine.objects.get().status == "idle"
    assert claim(by)
    assert Machine.objects.get().status == "busy"
    assert machines.leaves(by.machine_id, by.boot_id, 1, "nothing is ready")
    assert Machine.objects.get().status == "retiring"
    assert not machines.idle(by.machine_id, by.boot_id, 1), "what retires does not go back to waiting"
    event = {"exit_code": 0}
    assert machines.gone(machine, state="destroyed", exit_event=event, reason="machine ended")
    row = Machine.objects.get()
    assert (row.status, row.exit_event, row.runs) == ("gone", event, 1)
    assert row.gone_at is not None


def test_a_check_in_that_overtakes_the_answer_of_the_create_call_is_not_undone() -> None:
    tasks.add.enqueue(1)
    [machine] = queues.reserve(only_group(), WISH).machines
    machines.requesting(machine)
    check_in(machine)
    assert machines.created(machine, fly_id="abc", region="iad", state="started", request_ids=["r1"])
    row = Machine.objects.get()
    assert (row.status, row.fly_id) == ("booted", "abc")


def test_a_machine_that_never_checks_in_is_overdue() -> None:
    tasks.add.enqueue(1)
    [machine] = queues.reserve(only_group(), WISH).machines
    assert machines.unborn(60) == []
    Machine.objects.update(requested_at=timezone.now() - datetime.timedelta(seconds=61))
    assert machines.unborn(60) == [(machine, -1.0)]
    machines.seen(machine, "started")
    [(late, seconds)] = machines.unborn(600)
    assert late == machine
    assert 0 <= seconds < 55
    check_in(machine)
    assert machines.unborn(60) == []
    assert machines.overdue() == []
    Machine.objects.update(deadline_at=timezone.now() - datetime.timedelta(seconds=1))
    assert machines.overdue() == [machine]


def test_a_reservation_whose_dispatcher_died_is_found() -> None:
    tasks.add.enqueue(1)
    [machine] = queues.reserve(only_group(), WISH).machines
    assert machines.unlaunched() == []
    Machine.objects.update(reserved_at=timezone.now() - datetime.timedelta(seconds=16))
    assert machines.unlaunched() == [machine]
    assert machines.requesting(machine)
    assert machines.unlaunched() == []
    Machine.objects.update(requested_at=timezone.now() - datetime.timedelta(seconds=91))
    assert machines.unlaunched() == [machine]
    assert machines.requesting(machine)
