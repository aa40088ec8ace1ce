"""Claims: one run, one holder; late writers change nothing."""

import dataclasses
import datetime
import threading
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction
from django.utils import timezone

from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.models import Attempt, Machine, OutputChunk, Queue, TaskRun
from machinequeue.records import claims, machines, runs
from machinequeue.records.claims import Report
from tests.integration.conftest import check_in, checked_in, claim, claimed, reserved
from tests.workshop import tasks

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("woken")]

SECOND = datetime.timedelta(seconds=1)
BROKE = Failure(AttemptStatus.FAILED, error="builtins.ValueError", traceback="Traceback …", sentence="ValueError: no")


def row(result: Any) -> TaskRun:
    return TaskRun.objects.get(pk=result.id)


def test_a_claim_makes_the_run_running_with_an_attempt_and_a_lease() -> None:
    result = tasks.add.enqueue(1, b=2)
    by = checked_in(result)
    held = claim(by)
    assert held is not None
    assert (str(held.run_id), held.epoch, held.args, held.kwargs) == (result.id, 1, [1], {"b": 2})
    assert (held.task, held.queue, held.timeout, held.max_attempts) == ("tests.workshop.tasks.add", "default", 600, 1)
    run = row(result)
    assert (run.status, run.epoch) == ("RUNNING", 1)
    assert run.started_at == run.last_attempted_at == held.started_at
    assert 40 < (run.lease_expires_at - run.started_at).total_seconds() < 50  # type: ignore[operator]
    attempt = Attempt.objects.get(run=run)
    assert (attempt.epoch, attempt.machine_id, attempt.boot_id, attempt.status) == (
        1,
        by.machine_id,
        by.boot_id,
        "running",
    )
    assert Machine.objects.get().status == "busy"
    assert claim(by) is None, "there is nothing more"


def test_priority_comes_first_then_age() -> None:
    low, old, new, high = (
        tasks.add.using(priority=priority).enqueue(number) for number, priority in enumerate((-5, 0, 0, 9))
    )
    by = checked_in(old)
    order = [str(held.run_id) for _ in range(4) if (held := claim(by))]
    assert order == [high.id, old.id, new.id, low.id]


def test_a_run_is_not_claimed_before_its_time() -> None:
    now_due = tasks.add.enqueue(1)
    later = tasks.add.using(run_after=datetime.timedelta(minutes=1), priority=9).enqueue(2)
    by = checked_in(now_due)
    assert str(claim(by).run_id) == now_due.id  # type: ignore[union-attr]
    assert claim(by) is None
    TaskRun.objects.filter(pk=later.id).update(run_after=timezone.now() - SECOND)
    assert str(claim(by).run_id) == later.id  # type: ignore[union-attr]


def test_an_expired_run_is_not_claimed_and_ends() -> None:
    result = tasks.add.enqueue(1)
    by = checked_in(result)
    TaskRun.objects.update(expires_at=timezone.now() - SECOND)
    assert claim(by) is None
    assert runs.expire() == 1
    result.refresh()
    assert (result.run_status, str(result.status)) == ("EXPIRED", "FAILED")
    assert result.errors[0].exception_class_path == "machinequeue.errors.RunExpired"


def test_a_run_longer_than_the_rest_of_the_machine_s_life_is_left_for_another() -> None:
    by = checked_in(tasks.add.using(timeout=100).enqueue(1))
    assert claim(by, life_seconds=99) is None
    assert claim(by, life_seconds=100) is not None


@pytest.mark.parametrize("other", ["queue_name", "memory_mb"])
def test_a_machine_claims_only_its_own_queue_and_spec(other: str) -> None:
    mine = tasks.add.enqueue(1)
    by = checked_in(mine)
    runs.cancel(row(mine).pk)
    changed = {"queue_name": "warm"} if other == "queue_name" else {"memory_mb": 1024}
    tasks.add.using(**changed).enqueue(2)
    assert claim(by) is None


def test_a_retiring_machine_claims_nothing() -> None:
    by = checked_in(tasks.add.enqueue(1))
    assert machines.retire(Machine.objects.get(), "an image is no longer current")
    assert claim(by) is None


def test_a_machine_of_an_older_boot_claims_nothing() -> None:
    result = tasks.add.enqueue(1)
    machine = reserved(result)
    first, second = check_in(machine), check_in(machine)
    assert claim(first) is None
    assert claim(second) is not None


def test_a_gone_machine_claims_nothing_and_cannot_check_in() -> None:
    result = tasks.add.enqueue(1)
    machine = reserved(result)
    by = check_in(machine)
    assert machines.gone(machine, state="destroyed", exit_event=None)
    assert not machines.gone(machine, state="destroyed", exit_event=None), "it goes once"
    assert claim(by) is None
    assert machines.check_in(machine.name, boot_id="b", fly_id="", region="", stages={}) is None
    assert machines.check_in("mq-unknown", boot_id="b", fly_id="", region="", stages={}) is None


def test_nothing_is_claimed_while_the_queue_is_paused() -> None:
    by = checked_in(tasks.add.enqueue(1))
    Queue.objects.create(backend="default", name="default", paused_at=timezone.now())
    assert claim(by) is None
    assert runs.due_groups() == []
    Queue.objects.update(paused_at=None)
    assert claim(by) is not None


def test_a_reserved_machine_that_never_checked_in_claims_nothing() -> None:
    machine = reserved(tasks.add.enqueue(1))
    assert claim(dataclasses.replace(check_in(machine), boot_id="")) is None


@pytest.mark.django_db(transaction=True)
def test_claimers_at_once_never_get_the_same_run() -> None:
    total, claimers = 60, 6
    results = tasks.add.enqueue_many([((number,), {}) for number in range(total)])
    by = [checked_in(results[0]) for _ in range(claimers)]
    taken: list[list[str]] = [[] for _ in by]
    start = threading.Barrier(claimers)

    def work(number: int) -> None:
        start.wait()
        try:
            while held := claim(by[number]):
                taken[number].append(str(held.run_id))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(claimers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [run for each in taken for run in each]
    assert sorted(everything) == sorted(result.id for result in results)
    assert Attempt.objects.count() == total
    assert set(TaskRun.objects.values_list("epoch", flat=True)) == {1}


# Outcomes -----------------------------------------------------------------------------------------------------------


def test_a_success_ends_run_and_attempt_in_one_step() -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    report = Report(pid=42, peak_memory_mb=30, seconds=1.5, stages={"call": 1.0}, progress={"current": 1})
    assert claims.succeed(held, {"total": [1, "é"]}, report)
    run, attempt = row(result), Attempt.objects.get()
    assert (run.status, run.return_value, run.lease_expires_at) == ("SUCCESSFUL", {"total": [1, "é"]}, None)
    assert run.progress == {"current": 1}
    assert run.finished_at is not None
    assert run.finished_at >= run.started_at  # type: ignore[operator]
    assert (attempt.status, attempt.pid, attempt.exit_code, attempt.peak_memory_mb) == ("succeeded", 42, 0, 30)
    assert (attempt.seconds, attempt.stages) == (1.5, {"call": 1.0})
    assert not claims.succeed(held, "again", Report()), "a finished run has no holder"
    assert claims.fail(held.run_id, held.epoch, BROKE, Report()) is None
    assert row(result).return_value == {"total": [1, "é"]}


@pytest.mark.parametrize("value", [None, 0, "", False, [], {}])
def test_a_return_value_that_is_false_is_a_value(value: Any) -> None:
    result = tasks.add.enqueue(1)
    assert claims.succeed(claimed(result), value, Report())
    result.refresh()
    assert result.return_value == value


def test_output_is_stored_with_the_outcome() -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    claims.add_output(held, "one\n", 0)
    assert claims.succeed(held, 1, Report(output="two\n", dropped=9))
    assert [chunk.text for chunk in OutputChunk.objects.order_by("id")] == ["one\n", "two\n"]
    assert result.output == "one\n[9 bytes dropped]\ntwo\n"


def test_a_failure_with_attempts_left_makes_the_run_ready_again_later() -> None:
    result = tasks.add.using(max_attempts=2).enqueue(1)
    by = checked_in(result)
    held = claim(by)
    assert held is not None
    decision = claims.fail(held.run_id, held.epoch, dataclasses.replace(BROKE, delay=30.0), Report(exit_code=1))
    assert decision is not None
    run = row(result)
    assert (run.status, run.task_attempts, run.finished_at, run.lease_expires_at) == ("READY", 1, None, None)
    assert 28 < (run.run_after - timezone.now()).total_seconds() < 31
    assert claim(by) is None, "not before its time"
    attempt = Attempt.objects.get()
    assert (attempt.status, attempt.error, attempt.exit_code) == ("failed", "builtins.ValueError", 1)
    assert attempt.diagnosis == {"category": "failed", "sentence": "ValueError: no", "remedy": ""}

    TaskRun.objects.update(run_after=timezone.now() - SECOND)
    held = claim(by)
    assert held is not None
    assert held.epoch == 2
    claims.fail(held.run_id, held.epoch, BROKE, Report())
    run = row(result)
    assert (run.status, run.task_attempts) == ("FAILED", 2)
    assert run.finished_at is not None
    assert [attempt.status for attempt in runs.attempts(run.pk)] == ["failed", "failed"]


def test_who_was_presumed_dead_can_change_nothing() -> None:
    result = tasks.add.using(max_attempts=3).enqueue(1)
    by = checked_in(result)
    late = claim(by)
    assert late is not None
    claims.fail(late.run_id, late.epoch, Failure(AttemptStatus.LOST, sentence="its machine ended"), Report())
    held = claim(by)
    assert held is not None
    assert (held.run_id, held.epoch) == (late.run_id, 2)

    assert not claims.succeed(late, "too late", Report())
    assert not claims.succeed(late, "too late", Report(output="with output"))
    assert claims.fail(late.run_id, late.epoch, BROKE, Report()) is None
    assert claims.heartbeat(late, lease_seconds=900, pid=1, progress={"current": 9}) == claims.Pulse(False, False)
    run = row(result)
    assert (run.status, run.epoch, run.progress) == ("RUNNING", 2, None)
    assert [(attempt.epoch, attempt.status) for attempt in runs.attempts(run.pk)] == [(1, "lost"), (2, "running")]

    assert claims.succeed(held, "in time", Report())
    assert row(result).return_value == "in time"


def test_a_heartbeat_extends_the_lease_and_brings_the_news() -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    TaskRun.objects.update(lease_expires_at=timezone.now())
    assert claims.heartbeat(held, lease_seconds=45, pid=77, progress={"current": 1}) == claims.Pulse(True, False)
    run = row(result)
    assert 43 < (run.lease_expires_at - timezone.now()).total_seconds() < 46  # type: ignore[operator]
    assert run.progress == {"current": 1}
    assert Attempt.objects.get().pid == 77
    assert runs.cancel(run.pk)
    assert claims.heartbeat(held, lease_seconds=45, pid=77) == claims.Pulse(True, True)
    assert claims.pulse(held) == claims.Pulse(True, True)


def test_a_released_run_is_ready_at_once_and_costs_the_task_nothing() -> None:
    result = tasks.add.enqueue(1)
    by = checked_in(result)
    held = claim(by)
    assert held is not None
    claims.fail(
        held.run_id, held.epoch, Failure(AttemptStatus.INTERRUPTED, sentence="its machine was stopped"), Report()
    )
    run = row(result)
    assert (run.status, run.task_attempts, run.lost_attempts) == ("READY", 0, 1)
    assert claim(by) is not None


def test_a_run_that_loses_three_machines_is_poison() -> None:
    result = tasks.add.using(max_attempts=9).enqueue(1)
    by = checked_in(result)
    for _ in range(3):
        held = claim(by)
        assert held is not None
        claims.fail(held.run_id, held.epoch, Failure(AttemptStatus.LOST, sentence="it ended"), Report())
    assert claim(by) is None
    result.refresh()
    assert result.run_status == "FAILED"
    assert "given up after 3 attempts lost" in result.why()


# Cancel and retry ---------------------------------------------------------------------------------------------------


def test_a_ready_run_is_cancelled_at_once() -> None:
    result = tasks.add.enqueue(1)
    by = checked_in(result)
    assert result.cancel()
    assert not result.cancel(), "it has finished"
    assert claim(by) is None
    result.refresh()
    assert (result.run_status, str(result.status), result.is_finished) == ("CANCELLED", "FAILED", True)
    assert result.errors[-1].exception_class_path == "machinequeue.errors.RunCancelled"
    assert issubclass(result.errors[-1].exception_class, Exception)


@pytest.mark.parametrize("how", [AttemptStatus.FAILED, AttemptStatus.LOST, AttemptStatus.CANCELLED])
def test_a_requested_cancel_wins_over_every_retry(how: AttemptStatus) -> None:
    result = tasks.add.using(max_attempts=9).enqueue(1)
    held = claimed(result)
    assert result.cancel()
    claims.fail(held.run_id, held.epoch, Failure(how, sentence="it ended"), Report())
    assert row(result).status == "CANCELLED"


def test_a_cancel_that_comes_too_late_changes_nothing() -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    assert result.cancel(), "it is asked to stop"
    assert claims.succeed(held, 1, Report())
    result.refresh()
    assert (result.run_status, result.return_value) == ("SUCCESSFUL", 1)
    assert not result.cancel()


def test_a_retry_gives_a_finished_run_its_attempts_back() -> None:
    result = tasks.add.enqueue(1)
    by = checked_in(result)
    held = claim(by)
    assert held is not None
    assert not runs.retry(held.run_id), "it runs"
    claims.fail(held.run_id, held.epoch, BROKE, Report())
    assert runs.retry(held.run_id)
    run = row(result)
    assert (run.status, run.task_attempts, run.finished_at, run.epoch) == ("READY", 0, None, 1)
    held = claim(by)
    assert held is not None
    assert held.epoch == 2
    assert claims.succeed(held, 5, Report())
    assert not runs.retry(held.run_id), "what succeeded is not run again"
    result.refresh()
    assert (result.return_value, result.attempts) == (5, 2)


# What the database itself refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "illegal",
    [
        {"status": "DONE"},
        {"status": "RUNNING", "lease_expires_at": None},
        {"status": "FAILED", "finished_at": None},
        {"finished_at": timezone.now()},
    ],
)
def test_an_illegal_row_is_refused_by_the_table(illegal: dict[str, Any]) -> None:
    result = tasks.add.enqueue(1)
    with pytest.raises(IntegrityError), transaction.atomic():
        TaskRun.objects.filter(pk=result.id).update(**illegal)
