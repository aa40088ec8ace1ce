"""Claims: one run, one holder; late writers change nothing."""

import dataclasses
import datetime
import threading
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction
from django.db.models import QuerySet
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


def test_a_claim_whose_answer_was_lost_is_found_by_the_boot_that_made_it() -> None:
    result = tasks.add.enqueue(1)
    by = checked_in(result)
    assert claims.unanswered(by, lease_seconds=45) is None
    held = claim(by)
    assert held is not None
    assert claims.unanswered(dataclasses.replace(by, boot_id="another"), lease_seconds=45) is None
    before = row(result).lease_expires_at
    assert claims.unanswered(by, lease_seconds=90) == held
    after = row(result).lease_expires_at
    assert before is not None
    assert after is not None
    assert after - before > 40 * SECOND
    assert claims.succeed(held, 1, Report())
    assert claims.unanswered(by, lease_seconds=45) is None


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


def test_no_amount_of_output_keeps_an_outcome_from_being_stored() -> None:
    """A task that prints without end writes gigabytes within a second."""
    result = tasks.add.enqueue(1)
    held = claimed(result)
    claims.add_output(held, "one\n", 3_000_000_000)
    decision = claims.fail(held.run_id, held.epoch, BROKE, Report(output="two\n", dropped=2**40))
    assert decision is not None
    assert [chunk.text for chunk in OutputChunk.objects.order_by("id")] == ["one\n", "two\n"]


def test_a_failure_with_attempts_left_makes_the_run_ready_again_later() -> None:
    result = tasks.add.using(max_attempts=2).enqueue(1)
    by = checked_in(result)
    held = claim(by)
    assert held is not None
    decision = claims.fail(held.run_id, held.epoch, dataclasses.replace(BROKE, delay=30.0), Report(exit_code=1))
    assert decision is not None
    run = row(result)
    assert (run.status, run.task_attempts, run.finished_at, run.lease_expires_at) == ("READY", 1, None, None)
    assert 10 < (run.run_after - timezone.now()).total_seconds() < 31
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
    assert 20 < (run.lease_expires_at - timezone.now()).total_seconds() < 46  # type: ignore[operator]
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


def test_a_cancel_is_not_lost_when_its_run_is_given_back_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    result = tasks.add.using(max_attempts=3).enqueue(1)
    held = claimed(result)
    update, calls = QuerySet.update, []

    def given_back_meanwhile(self: Any, **changes: Any) -> int:
        if self.model is TaskRun and "cancel_requested_at" in changes:
            calls.append(changes)
            if len(calls) == 2:  # it was not READY a moment ago, and is RUNNING no more
                monkeypatch.undo()
                claims.fail(held.run_id, held.epoch, Failure(AttemptStatus.LOST, sentence="lost"), Report())
        return update(self, **changes)

    monkeypatch.setattr(QuerySet, "update", given_back_meanwhile)
    assert runs.cancel(held.run_id)
    assert row(result).status == "CANCELLED"


def test_who_asks_twice_for_a_cancel_asked_the_first_time() -> None:
    held = claimed(tasks.add.enqueue(1))
    assert runs.cancel(held.run_id)
    first = TaskRun.objects.get(pk=held.run_id).cancel_requested_at
    assert runs.cancel(held.run_id)
    assert TaskRun.objects.get(pk=held.run_id).cancel_requested_at == first


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


# Checkpoints, boots, and answers that were lost -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"count": [1, None]}, "text", 0, None])
def test_a_checkpoint_is_what_the_next_attempt_begins_with(value: Any) -> None:
    result = tasks.add.using(max_attempts=2).enqueue(1)
    by = checked_in(result)
    held = claim(by)
    assert held is not None
    assert held.checkpoint is None
    assert claims.checkpoint(held, "an earlier one")
    assert claims.heartbeat(held, lease_seconds=45, pid=1, saved=claims.Saved(value)).held
    assert row(result).checkpoint == value
    assert claims.heartbeat(held, lease_seconds=45, pid=1).held
    assert row(result).checkpoint == value, "a heartbeat without one changes nothing"
    claims.fail(held.run_id, held.epoch, Failure(AttemptStatus.INTERRUPTED), Report())
    again = claim(by)
    assert again is not None
    assert again.checkpoint == value
    assert not claims.checkpoint(held, "too late")
    assert not claims.heartbeat(held, lease_seconds=45, pid=1, saved=claims.Saved("too late")).held
    assert row(result).checkpoint == value


def test_a_machine_that_checks_in_again_loses_what_it_ran_in_earlier_boots() -> None:
    mine, other = tasks.add.enqueue(1), tasks.add.enqueue(2)
    machine, stranger = reserved(mine), reserved(mine)
    first, elsewhere = check_in(machine), check_in(stranger)
    held, theirs = claim(first), claim(elsewhere)
    assert held is not None
    assert theirs is not None
    second = check_in(machine)
    run = row(mine)
    assert (run.status, run.lost_attempts, run.task_attempts) == ("READY", 1, 0)
    assert run.reason == f"machine {machine.name} was started again; starting again"
    assert row(other).status == "RUNNING", "another machine's run goes on"
    again = claim(second)
    assert again is not None
    assert (again.run_id, again.epoch) == (held.run_id, 2)
    assert not claims.succeed(held, "too late", Report())
    assert claims.lose_older(machine.pk, second.boot_id, machine.name) == 0, "its present boot's runs are its own"


def test_who_finds_its_claim_gone_can_tell_whether_it_was_by_its_own_write() -> None:
    result = tasks.add.using(max_attempts=3).enqueue(1)
    by = checked_in(result)
    held = claim(by)
    assert held is not None
    assert claims.recorded(held, AttemptStatus.SUCCEEDED) is None
    claims.fail(held.run_id, held.epoch, dataclasses.replace(BROKE, delay=0.0), Report())
    assert claims.recorded(held, AttemptStatus.FAILED) == "READY"
    assert claims.recorded(held, AttemptStatus.SUCCEEDED) is None, "it ended otherwise"
    TaskRun.objects.update(run_after=timezone.now() - SECOND)
    again = claim(by)
    assert again is not None
    assert claims.succeed(again, 1, Report())
    assert claims.recorded(again, AttemptStatus.SUCCEEDED) == "SUCCESSFUL"
    assert claims.recorded(held, AttemptStatus.FAILED) == "READY", "what came after is another attempt's"


def test_output_of_an_attempt_that_has_ended_is_not_stored() -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    claims.fail(held.run_id, held.epoch, Failure(AttemptStatus.LOST), Report(output="last words"))
    claims.add_output(held, "from the grave", 0)
    assert result.output == "last words"


def test_a_failure_that_is_charged_to_nobody_leaves_both_budgets_as_they_were() -> None:
    result = tasks.add.enqueue(1)
    by = checked_in(result)
    for _ in range(5):
        held = claim(by)
        assert held is not None
        claims.fail(held.run_id, held.epoch, dataclasses.replace(BROKE, charged=False), Report())
        run = row(result)
        assert (run.status, run.task_attempts, run.lost_attempts) == ("READY", 0, 0)
        TaskRun.objects.update(run_after=timezone.now() - SECOND)
