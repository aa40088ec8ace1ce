"""What users' own tests stand on: run_tasks, and backends without machines."""

import math
from typing import Any

import pytest
from django.db import transaction

from machinequeue import MachineTask
from machinequeue.compat import default_task_backend
from machinequeue.models import Machine, TaskRun
from machinequeue.testing import run_tasks
from tests.workshop import tasks

pytestmark = [pytest.mark.usefixtures("woken")]


@pytest.mark.django_db
def test_run_tasks_executes_what_is_due_with_the_round_trip_of_a_machine() -> None:
    results = [tasks.add.enqueue(1, b=2), tasks.doubled.enqueue(4), tasks.anything.enqueue((1, 2), k=("x",))]
    assert run_tasks() == 3
    for result in results:
        result.refresh()
    assert [result.return_value for result in results] == [3, 8, [[1, 2], [], {"k": ["x"]}]]
    assert [result.attempts for result in results] == [1, 1, 1]
    assert set(Machine.objects.values_list("status", flat=True)) == {"gone"}
    assert run_tasks() == 0


@pytest.mark.django_db
def test_run_tasks_executes_what_tasks_enqueue() -> None:
    result = tasks.enqueue_another.enqueue(20, 3)
    assert run_tasks() == 2
    result.refresh()
    assert tasks.add.get_result(result.return_value).return_value == 23


@pytest.mark.django_db
def test_run_tasks_gives_a_task_its_context(tmp_path: Any) -> None:
    (tmp_path / "gate").touch()
    result = tasks.counting.enqueue(str(tmp_path / "gate"))
    assert run_tasks() == 1
    result.refresh()
    assert result.return_value == {"id": result.id, "attempt": 1, "status": "RUNNING", "args": result.args}


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("task", "args", "error", "attempts"),
    [
        (tasks.boom, (), ValueError, 1),
        (tasks.leave, (3,), SystemExit, 1),
        (tasks.unstorable, (), TypeError, 1),
        (tasks.anything, (math.pi,), None, 1),
    ],
)
def test_run_tasks_ends_a_failure_in_its_result(
    task: MachineTask, args: tuple[Any, ...], error: type | None, attempts: int
) -> None:
    result = task.enqueue(*args)
    assert run_tasks() == attempts
    result.refresh()
    assert len(result.errors) == (1 if error else 0)
    if error:
        assert issubclass(result.errors[0].exception_class, error)


@pytest.mark.django_db
def test_run_tasks_retries_as_often_as_the_task_may(tmp_path: Any) -> None:
    result = tasks.flaky.enqueue(str(tmp_path))
    assert run_tasks() == 3
    result.refresh()
    assert (result.return_value, result.attempts) == (2, 3)


@pytest.mark.django_db
def test_run_tasks_stops_where_it_is_told() -> None:
    for number in range(5):
        tasks.add.enqueue(number)
    assert run_tasks(most=3) == 3
    assert TaskRun.objects.filter(status="READY").count() == 2


@pytest.mark.django_db
def test_run_tasks_sees_nothing_that_was_rolled_back() -> None:
    with pytest.raises(RuntimeError), transaction.atomic():
        tasks.add.enqueue(1)
        raise RuntimeError
    assert run_tasks() == 0


def other_backend(settings: Any, name: str) -> None:
    settings.TASKS = {"default": {**settings.TASKS["default"], "BACKEND": f"machinequeue.testing.{name}"}}


def test_the_immediate_backend_executes_at_once_without_a_table(settings: Any) -> None:
    other_backend(settings, "ImmediateBackend")
    result = tasks.add.using(priority=5, memory_mb=1024).enqueue(2, b=3)
    assert (str(result.status), result.return_value) == ("SUCCESSFUL", 5)
    failed = tasks.boom.enqueue()
    assert failed.errors[0].exception_class is ValueError


def test_the_dummy_backend_notes_and_executes_nothing(settings: Any) -> None:
    other_backend(settings, "DummyBackend")
    tasks.boom.enqueue("never raised")
    [result] = default_task_backend.results
    assert (result.args, str(result.status)) == (["never raised"], "READY")
    default_task_backend.clear()


@pytest.mark.django_db
def test_run_tasks_keeps_checkpoints_between_attempts() -> None:
    result = tasks.fails_after_saving.enqueue()
    assert run_tasks() == 2
    result.refresh()
    assert (result.return_value, result.attempts) == ([1, "é", None], 2)
