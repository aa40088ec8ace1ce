"""What the caller reads: results, errors, history, the sentence why, and what waiting does."""

import asyncio
import dataclasses
import datetime
import pickle
import time
import uuid
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from machinequeue import MachineBackend, MachineTaskResult, TaskTimeout, WaitInsideTask
from machinequeue.compat import (
    TaskResultDoesNotExist,
    TaskResultMismatch,
    default_task_backend,
    task_backends,
    task_signals,
)
from machinequeue.errors import RunRefused, RunTimedOut, TaskNotImportable
from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.models import TaskRun
from machinequeue.records import claims, runs
from machinequeue.records.claims import Report
from tests.integration.conftest import claimed
from tests.workshop import tasks

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("woken")]


def finished(value: Any = 3) -> MachineTaskResult:
    result = tasks.add.enqueue(1, b=2)
    assert claims.succeed(claimed(result), value, Report(pid=9, seconds=0.5))
    return result


@pytest.mark.parametrize("wrong", ["", "nonsense", "123", "x" * 500, None, 7, "\x00", "0" * 31])
def test_a_malformed_id_is_a_result_that_does_not_exist(wrong: Any) -> None:
    with pytest.raises(TaskResultDoesNotExist, match="which is a UUID"):
        tasks.add.get_result(wrong)


def test_an_unknown_id_is_a_result_that_does_not_exist() -> None:
    with pytest.raises(TaskResultDoesNotExist, match="may have been pruned"):
        default_task_backend.get_result(str(uuid.uuid4()))


def test_a_result_of_another_task_is_a_mismatch() -> None:
    result = tasks.add.enqueue(1)
    with pytest.raises(TaskResultMismatch):
        tasks.report.get_result(result.id)


def test_a_success_as_its_caller_reads_it() -> None:
    result = finished()
    assert str(result.status) == "READY"
    with pytest.raises(ValueError, match="not finished"):
        result.return_value  # noqa: B018
    result.refresh()
    assert (str(result.status), result.return_value, result.errors, result.attempts) == ("SUCCESSFUL", 3, [], 1)
    assert result.is_finished
    assert result.enqueued_at <= result.started_at <= result.finished_at  # type: ignore[operator]
    assert result.last_attempted_at == result.started_at
    again = tasks.add.get_result(result.id)
    assert again.task == tasks.add
    assert (again.args, again.kwargs) == ([1], {"b": 2})
    [attempt] = result.history
    assert (attempt["number"], attempt["status"], attempt["pid"], attempt["seconds"]) == (1, "succeeded", 9, 0.5)
    assert attempt["machine"].startswith("mq-default-")
    assert result.worker_ids == [attempt["machine_id"]]
    assert result.why() == "successful"


def test_a_failure_as_its_caller_reads_it() -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    failure = Failure(
        AttemptStatus.FAILED, error="decimal.DivisionByZero", traceback="Traceback: 1/0", sentence="DivisionByZero"
    )
    claims.fail(held.run_id, held.epoch, failure, Report(exit_code=0))
    result.refresh()
    assert str(result.status) == "FAILED"
    [error] = result.errors
    assert error.exception_class.__name__ == "DivisionByZero"
    assert error.traceback == "Traceback: 1/0"
    with pytest.raises(ValueError, match="failed"):
        result.return_value  # noqa: B018
    assert result.why() == "DivisionByZero"


@pytest.mark.parametrize("error", ["RunTimedOut", "RunCrashed", "RunLost", "RunCancelled", "TaskNotImportable"])
def test_every_ending_without_an_exception_of_its_own_names_a_class_that_can_be_imported(error: str) -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    failure = Failure(AttemptStatus.TIMED_OUT, error=f"machinequeue.errors.{error}", sentence="it took too long")
    claims.fail(held.run_id, held.epoch, failure, Report())
    result.refresh()
    assert issubclass(result.errors[0].exception_class, Exception)
    assert result.errors[0].traceback == "it took too long", "without a traceback the sentence stands in for it"
    assert RunTimedOut is not TaskTimeout


def refuse(result: MachineTaskResult) -> None:
    run = TaskRun.objects.get(pk=result.id)
    assert runs.refuse(run.backend, run.queue, run.spec_key, "no machine could be created: no such size") == 1
    result.refresh()


def test_a_run_whose_machine_fly_refuses_says_so_without_an_attempt() -> None:
    result = tasks.add.enqueue(1)
    refuse(result)
    [error] = result.errors
    assert (str(result.status), error.exception_class) == ("FAILED", RunRefused)
    assert error.traceback == "no machine could be created: no such size"
    assert result.attempts == 0
    assert result.is_finished


@pytest.mark.django_db(transaction=True)
def test_a_refusal_comes_after_the_errors_of_earlier_attempts() -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    failure = Failure(AttemptStatus.LOST, error="machinequeue.errors.RunLost", sentence="host lost")
    claims.fail(held.run_id, held.epoch, failure, Report())
    refuse(result)
    assert [error.exception_class_path.rpartition(".")[2] for error in result.errors] == ["RunLost", "RunRefused"]


@pytest.mark.django_db(transaction=True)
def test_a_run_that_its_attempts_failed_was_not_refused() -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    failure = Failure(AttemptStatus.FAILED, error="builtins.OSError", sentence="no", retry=False)
    claims.fail(held.run_id, held.epoch, failure, Report())
    result.refresh()
    assert [error.exception_class for error in result.errors] == [OSError]


def test_a_run_whose_task_was_removed_can_still_be_read(settings: Any) -> None:
    result = finished()
    TaskRun.objects.filter(pk=result.id).update(task="tests.workshop.tasks.removed", queue="dropped")
    again = default_task_backend.get_result(result.id)
    assert again.return_value == 3
    assert again.task.module_path == "tests.workshop.tasks.removed"
    assert again.task.queue_name == "dropped"
    with pytest.raises(TaskNotImportable):
        again.task.func()


def test_a_result_of_another_backend_is_not_seen(settings: Any) -> None:
    result = tasks.add.enqueue(1)
    settings.TASKS = {**settings.TASKS, "other": {"BACKEND": "machinequeue.MachineBackend"}}
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["other"].get_result(result.id)


# Waiting ------------------------------------------------------------------------------------------------------------


def test_waiting_for_what_is_finished_returns_at_once() -> None:
    result = finished()
    begin = time.monotonic()
    assert result.wait(timeout=30).return_value == 3
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_waiting_in_vain_ends_in_time_and_says_why_the_run_waits(seconds: float) -> None:
    result = tasks.add.enqueue(1)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=f"had not finished after {seconds:g} s: waiting: no dispatcher is running"):
        result.wait(timeout=seconds)
    assert seconds <= time.monotonic() - begin < seconds + 1


@pytest.mark.django_db(transaction=True)
def test_waiting_in_async_code() -> None:
    async def wait() -> tuple[Any, str]:
        result = await sync_to_async(finished)()
        value = (await result.await_result(timeout=5)).return_value
        with pytest.raises(TimeoutError) as caught:
            await (await tasks.add.aenqueue(1)).await_result(timeout=0.05)
        await sync_to_async(connections.close_all)()
        return value, str(caught.value)

    value, sentence = asyncio.run(wait())
    assert value == 3
    assert "waiting: no dispatcher" in sentence


def test_waiting_inside_a_task_is_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    result = finished()
    monkeypatch.setenv("MACHINEQUEUE_MACHINE", "mq-1")
    with pytest.raises(WaitInsideTask, match="ALLOW_WAIT_IN_TASK"):
        result.wait(timeout=1)
    with pytest.raises(WaitInsideTask):
        asyncio.run(result.await_result(timeout=1))
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "ALLOW_WAIT_IN_TASK": True}
    assert result.wait(timeout=1).return_value == 3


def test_why_of_a_run_that_was_deleted() -> None:
    result = tasks.add.enqueue(1)
    TaskRun.objects.all().delete()
    assert result.why() == "the run was deleted"


def test_why_of_a_run_that_runs_names_attempt_and_machine() -> None:
    result = tasks.add.enqueue(1)
    claimed(result)
    assert result.why().startswith("running: attempt 1 on mq-default-")
    result.cancel()
    assert result.why().endswith(", asked to stop")


def test_why_of_a_run_that_is_not_due() -> None:
    moment = datetime.datetime(2099, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    result = tasks.add.using(run_after=moment).enqueue(1)
    assert tasks.add.get_result(result.id).task.run_after == moment
    assert result.why() == "waiting until 2099-01-02 03:04:05 UTC"


# Signals and pickles ------------------------------------------------------------------------------------------------


def test_django_s_signal_is_sent_with_the_result_and_a_receiver_that_raises_is_not_felt() -> None:
    heard: list[Any] = []

    def hear(sender: type, task_result: Any, **kwargs: Any) -> None:
        heard.append((sender, task_result.id))
        raise RuntimeError("a receiver of the user")

    task_signals.task_enqueued.connect(hear)
    try:
        result = tasks.add.enqueue(1)
    finally:
        task_signals.task_enqueued.disconnect(hear)
    assert heard == [(MachineBackend, result.id)]


def test_a_task_and_its_variants_can_be_pickled() -> None:
    for task in (tasks.add, tasks.report, tasks.picky, tasks.add.using(priority=3, memory_mb=1024, regions=["iad"])):
        again = pickle.loads(pickle.dumps(task))  # noqa: S301 - our own
        assert again == task
        assert again.func is task.func
        assert hash(again) == hash(task)


def test_a_result_can_be_pickled() -> None:
    result = finished()
    result.refresh()
    again = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
    assert (again.id, again.return_value, again.task) == (result.id, 3, tasks.add)
    again.refresh()
    assert dataclasses.asdict(again)["id"] == result.id


def test_a_result_shows_itself_before_and_after_a_refresh() -> None:
    result = tasks.add.enqueue(1)
    assert result.id in repr(result)
    result.refresh()
    assert result.id in repr(result)
