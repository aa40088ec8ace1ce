"""Enqueue: one INSERT in the caller's transaction, a wake-up on commit, and clear words for what cannot be."""

import asyncio
import datetime
import logging
import math
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.utils import timezone

from machinequeue import EnqueueError, InvalidArguments, MachineBackend, MachineTask, enqueue_many, machine_task
from machinequeue.compat import InvalidTask, TaskResultStatus, default_task_backend, task_backends
from machinequeue.models import TaskRun
from tests.workshop import tasks

pytestmark = pytest.mark.django_db

Woken = list[tuple[str, str]]
Assert = Any


def test_an_enqueue_is_one_statement_and_returns_a_ready_result(
    woken: Woken, django_assert_num_queries: Assert
) -> None:
    tasks.add.enqueue(0)  # what is compiled once per task is not counted
    with django_assert_num_queries(1) as caught:
        result = tasks.add.enqueue(2, b=3)
    assert caught.captured_queries[0]["sql"].startswith("INSERT INTO machinequeue_taskrun")
    assert result.status == TaskResultStatus.READY
    assert (result.args, result.kwargs, result.backend, result.attempts) == ([2], {"b": 3}, "default", 0)
    row = TaskRun.objects.get(pk=result.id)
    assert (row.task, row.args, row.kwargs, row.queue) == ("tests.workshop.tasks.add", [2], {"b": 3}, "default")
    assert (row.status, row.epoch, row.task_attempts, row.lost_attempts) == ("READY", 0, 0, 0)
    assert row.enqueued_at == result.enqueued_at
    assert abs((timezone.now() - row.enqueued_at).total_seconds()) < 60
    assert row.run_after <= timezone.now()


def test_what_django_asks_of_a_backend() -> None:
    backend = default_task_backend
    assert (backend.supports_defer, backend.supports_async_task) == (True, True)
    assert (backend.supports_get_result, backend.supports_priority) == (True, True)
    assert isinstance(tasks.add, MachineTask)
    assert isinstance(task_backends["default"], MachineBackend)


def test_ids_grow_with_time(woken: Woken) -> None:
    ids = [tasks.add.enqueue(number).id for number in range(20)]
    assert sorted(ids) == ids


@pytest.mark.django_db(transaction=True)
def test_the_wake_up_goes_out_on_commit_and_not_before(woken: Woken) -> None:
    with transaction.atomic():
        tasks.add.enqueue(1)
        tasks.report.enqueue(1)
        assert woken == []
    assert woken == [("default", "default"), ("default", "reports")]


@pytest.mark.django_db(transaction=True)
def test_a_rolled_back_transaction_takes_its_runs_and_wake_ups_along(woken: Woken) -> None:
    with pytest.raises(RuntimeError), transaction.atomic():
        tasks.add.enqueue(1)
        raise RuntimeError("the purchase fails")
    assert not TaskRun.objects.exists()
    assert woken == []


@pytest.mark.django_db(transaction=True)
def test_outside_a_transaction_the_wake_up_goes_out_at_once(woken: Woken) -> None:
    tasks.add.enqueue(1)
    assert woken == [("default", "default")]


@pytest.mark.django_db(transaction=True)
def test_a_wake_up_that_raises_harms_nobody(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def broken(backend: str, queue: str) -> bool:
        raise OSError("no route")

    monkeypatch.setattr("machinequeue.wakeups.wake_soon", broken)
    with caplog.at_level(logging.CRITICAL):
        result = tasks.add.enqueue(1)
    assert TaskRun.objects.filter(pk=result.id).exists()


@pytest.mark.django_db(transaction=True)
def test_enqueue_from_async_code(woken: Woken) -> None:
    async def both() -> Any:
        first, second = await asyncio.gather(tasks.add.aenqueue(1, b=2), tasks.doubled.aenqueue(4))
        again = await tasks.add.aget_result(first.id)
        await sync_to_async(connections.close_all)()  # that of the thread behind async code
        return again, second

    first, second = asyncio.run(both())
    assert (first.args, first.kwargs) == ([1], {"b": 2})
    assert TaskRun.objects.get(pk=second.id).args == [4]
    assert len(woken) == 2


# using(...) ---------------------------------------------------------------------------------------------------------


def test_using_changes_one_call_and_not_the_task(woken: Woken) -> None:
    moment = timezone.now() + datetime.timedelta(hours=1)
    asked = tasks.add.using(run_after=moment, priority=7, memory_mb=1024, timeout=9, max_attempts=4, queue_name="warm")
    row = TaskRun.objects.get(pk=asked.enqueue(1).id)
    assert (row.priority, row.timeout, row.max_attempts, row.queue) == (7, 9.0, 4, "warm")
    assert row.spec["memory_mb"] == 1024
    assert row.run_after == moment
    plain = TaskRun.objects.get(pk=tasks.add.enqueue(1).id)
    assert (plain.priority, plain.queue, plain.spec["memory_mb"]) == (0, "default", 512)
    assert plain.spec_key != row.spec_key


def test_a_task_s_own_options_stand_over_those_of_its_queue(woken: Woken) -> None:
    row = TaskRun.objects.get(pk=tasks.report.enqueue(1).id)
    assert (row.spec["memory_mb"], row.spec["cpus"], row.timeout, row.max_attempts) == (4096, 2, 60.0, 3)


def test_runs_of_one_spec_have_one_key(woken: Woken) -> None:
    keys = {TaskRun.objects.get(pk=task.enqueue(1).id).spec_key for task in (tasks.add, tasks.doubled)}
    assert len(keys) == 1


def test_a_timedelta_counts_from_the_enqueue(woken: Woken) -> None:
    later = tasks.add.using(run_after=datetime.timedelta(minutes=5))
    row = TaskRun.objects.get(pk=later.enqueue(1).id)
    assert 299 < (row.run_after - row.enqueued_at).total_seconds() < 301
    moment = timezone.now()
    row = TaskRun.objects.get(pk=later.using(run_after=moment).enqueue(1).id)
    assert abs((row.run_after - moment).total_seconds()) < 0.01


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory": 512}, "using() has no option 'memory'. Did you mean 'memory_mb'?"),
        ({"run_at": None, "priorty": 3}, "Did you mean 'priority'?"),
        ({"func": print}, "using() has no option 'func'"),
    ],
)
def test_an_unknown_option_is_told_with_the_nearest_known_one(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError) as caught:
        tasks.add.using(**options)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queue_name": "report"}, "Queue 'report' is not one of TASKS['default']['QUEUES']. Did you mean 'reports'?"),
        ({"timeout": 4000}, "longer than machine_life"),
        ({"timeout": -1}, "timeout of task add must be at least 0.1"),
        ({"memory_mb": 300}, "in steps of 256"),
        ({"memory_mb": 65536}, "does not go with 1 shared CPU"),
        ({"cpus": 3}, "cpus=3 is no size"),
        ({"cpu_kind": "quick"}, "must be one of shared, performance"),
        ({"isolation": "thread"}, "must be one of"),
        ({"max_attempts": 0}, "must be at least 1"),
        ({"memory_mb": "512"}, "must be int"),
        ({"priority": 101}, "between -100 and 100"),
    ],
)
def test_what_no_machine_could_do_is_refused_before_anything_is_written(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        tasks.add.using(**options).enqueue(1)
    assert says in str(caught.value)
    assert not TaskRun.objects.exists()


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(InvalidTask, match="aware"):
        tasks.add.using(run_after=datetime.datetime(2030, 1, 1))  # noqa: DTZ001 - the mistake itself


def test_a_moment_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="run_after is a datetime or a timedelta, not 'tomorrow'"):
        tasks.add.using(run_after="tomorrow")


# The decorator ------------------------------------------------------------------------------------------------------


def test_the_decorator_refuses_unknown_options_and_run_after() -> None:
    with pytest.raises(TypeError, match="Did you mean 'timeout'"):
        machine_task(timout=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"use \.using\(run_after"):
        machine_task(run_after=timezone.now())  # type: ignore[call-overload]


def test_the_decorator_refuses_a_function_that_no_machine_could_find() -> None:
    def local() -> None: ...

    with pytest.raises(InvalidTask, match="module level"):
        machine_task(local)


def test_the_decorator_refuses_a_context_that_the_function_does_not_take() -> None:
    with pytest.raises(InvalidTask, match="context"):
        machine_task(takes_context=True)(_takes_nothing)


def _takes_nothing() -> None: ...


def test_a_wrong_queue_setting_is_told_where_a_task_is_declared(settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": "machinequeue.MachineBackend", "QUEUES": {"default": {"memry_mb": 1}}}}
    with pytest.raises(InvalidTask, match="Did you mean 'memory_mb'"):
        machine_task(_takes_nothing)


# Arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "cannot be called so: missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"c": 2}, "unexpected keyword argument 'c'"),
        ((1,), {"a": 2}, "multiple values for argument 'a'"),
        ((math.nan,), {}, "args[0] is nan"),
        ((1,), {"b": {1: 2}}, "b has the key 1"),
        ((timezone,), {}, "args[0] is a module"),
        (("\x00",), {}, "NUL"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_place(args: Any, kwargs: Any, says: str) -> None:
    with pytest.raises(InvalidArguments) as caught:
        tasks.add.enqueue(*args, **kwargs)
    assert says in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, EnqueueError)
    assert not TaskRun.objects.exists()


def test_the_context_is_no_argument_of_the_caller(woken: Woken) -> None:
    assert TaskRun.objects.get(pk=tasks.counting.enqueue("gate").id).args == ["gate"]
    with pytest.raises(InvalidArguments):
        tasks.counting.enqueue()


VALUES = [None, True, "é\U0001f600\\\"'%s\t\n\x01", 0.1, -(10**20), {"a": [1, {"": None}]}, [], "\ufeff", "a" * 100_000]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_what_is_stored_comes_back_unchanged(value: Any, woken: Woken) -> None:
    result = tasks.anything.enqueue(value, named=[value])
    fresh = tasks.anything.get_result(result.id)
    assert fresh.args == [value]
    assert fresh.kwargs == {"named": [value]}


# enqueue_many -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_many_calls_are_one_insert_and_one_wake_up(woken: Woken) -> None:
    results = enqueue_many(tasks.add, [((number,), {"b": 1}) for number in range(500)])
    rows = {str(row.pk): row for row in TaskRun.objects.all()}
    assert len(results) == len(rows) == 500
    for number, result in enumerate(results):
        assert rows[result.id].args == result.args == [number]
        assert rows[result.id].kwargs == {"b": 1}
    assert woken == [("default", "default")]


@pytest.mark.django_db(transaction=True)
def test_many_calls_are_written_all_or_none(woken: Woken) -> None:
    with pytest.raises(InvalidArguments, match=r"args\[0\] is nan"):
        tasks.add.enqueue_many([((1,), {}), ((math.nan,), {})])
    with pytest.raises(InvalidArguments, match=r"calls\[1\] must be an \(args, kwargs\) pair"):
        tasks.add.enqueue_many([((1,), {}), 2])  # type: ignore[list-item]
    with pytest.raises(RuntimeError), transaction.atomic():
        tasks.add.enqueue_many([((1,), {}), ((2,), {})])
        raise RuntimeError
    assert not TaskRun.objects.exists()
    assert woken == []


def test_many_calls_later_and_with_odd_texts(woken: Woken) -> None:
    moment = timezone.now() + datetime.timedelta(days=1)
    odd = 'tab\t newline\n backslash\\ quote" \\N é'
    [result] = tasks.anything.using(run_after=moment).enqueue_many([([odd], {"k": odd})])
    row = TaskRun.objects.get(pk=result.id)
    assert (row.args, row.kwargs, row.run_after) == ([odd], {"k": odd}, moment)


def test_no_calls_write_nothing_and_wake_nobody(woken: Woken) -> None:
    assert tasks.add.enqueue_many([]) == []
    assert woken == []
    with pytest.raises(InvalidTask, match="@machine_task"):
        enqueue_many(print, [])  # type: ignore[arg-type]


def test_many_calls_take_the_statements_of_one_transaction(django_assert_max_num_queries: Assert, woken: Woken) -> None:
    tasks.add.enqueue(0)
    with django_assert_max_num_queries(4):  # savepoint, COPY or INSERT, release
        tasks.add.enqueue_many([((number,), {}) for number in range(50)])
    assert TaskRun.objects.count() == 51
