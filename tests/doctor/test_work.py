"""What the rows say about how work goes."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from machinequeue.doctor.findings import Finding, Status
from machinequeue.lifecycle import CircuitKind
from machinequeue.models import Dispatcher, Machine, Queue, Schedule, TaskRun
from machinequeue.records import circuits, dispatchers, profiles, queues, schedules
from tests.doctor.conftest import IMAGE, Found
from tests.integration.conftest import check_in, reserved
from tests.workshop import tasks

Only = Callable[[str], Finding]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("woken")]


# Dispatchers ----------------------------------------------------------------------------------------------------------


def test_no_dispatcher_was_ever_started(only: Only) -> None:
    found = only("dispatcher")
    assert (found.status, "mq_dispatcher" in found.remedy) == (Status.FAILURE, True)


def test_a_dispatcher_that_is_alive(only: Only) -> None:
    dispatchers.seen("one")
    Dispatcher.objects.update(seen_at=Now() + timedelta(seconds=600))  # however slow this computer is
    assert only("dispatcher").status == Status.OK


def test_a_dispatcher_that_was_not_seen_for_long(only: Only) -> None:
    dispatchers.seen("one")
    Dispatcher.objects.update(seen_at=Now() - timedelta(hours=5))
    found = only("dispatcher")
    assert (found.status, "5 h" in found.sentence) == (Status.FAILURE, True)


def test_the_doctor_speaks_english_where_the_site_speaks_german(only: Only, settings: Any) -> None:
    settings.LANGUAGE_CODE = "de"
    assert "No dispatcher is running" in only("dispatcher").sentence
    circuits.failed(CircuitKind.QUOTA, "limit")
    for _ in range(5):
        circuits.failed(CircuitKind.QUOTA, "limit")
    assert only("circuits").sentence.startswith("Quota reached, ")


# What health asks too -------------------------------------------------------------------------------------------------


def test_nothing_waits_and_nothing_is_late(only: Only) -> None:
    for name in ("backlog", "machines", "schedules"):
        assert only(name).status == Status.OK


def test_a_run_that_waits_for_too_long(only: Only) -> None:
    tasks.add.enqueue(1)
    TaskRun.objects.update(run_after=Now() - timedelta(hours=3))
    found = only("backlog")
    assert (found.status, "3 h" in found.sentence) == (Status.FAILURE, True)
    assert found.remedy


def test_a_machine_that_should_be_gone(only: Only) -> None:
    machine = reserved(tasks.add.enqueue(1))
    Machine.objects.update(deadline_at=Now() - timedelta(hours=3))
    found = only("machines")
    assert found.status != Status.OK
    assert machine.name in found.sentence


def test_a_schedule_that_is_late(only: Only) -> None:
    schedules.declare("nightly", schedules.Entry(task=tasks.add.module_path, args=[1], every_seconds=3600.0))
    Schedule.objects.update(next_at=Now() - timedelta(hours=3))
    found = only("schedules")
    assert (found.status, "nightly" in found.sentence) == (Status.FAILURE, True)
    assert "dispatcher" in found.remedy


# Circuits and queues --------------------------------------------------------------------------------------------------


def test_a_circuit_that_is_open(only: Only) -> None:
    assert only("circuits").status == Status.OK
    for _ in range(5):
        circuits.failed(CircuitKind.TOKEN, "401: token validation error")
    found = only("circuits")
    assert found.status == Status.FAILURE
    assert "401: token validation error" in found.sentence
    assert "fly tokens create deploy" in found.remedy


def test_queues_that_take_runs(only: Only) -> None:
    found = only("queues")
    assert (found.status, "default" in found.sentence) == (Status.OK, True)


def test_a_queue_that_is_paused_and_one_whose_launches_fail(found: Found) -> None:
    machine = reserved(tasks.add.enqueue(1))
    queues._ensure("default", "default")
    queues.launch_failed(machine, "Fly did not answer", pause_seconds=1)
    queues.set_paused(Queue.objects.get(name="default").pk, paused=True)
    paused, failing = found("queues")
    assert {paused.status, failing.status} == {Status.WARNING}
    assert "default is paused" in paused.sentence
    assert "1 time in a row: Fly did not answer" in failing.sentence


def test_runs_of_a_queue_that_the_settings_do_not_name(settings: Any, only: Only) -> None:
    tasks.add.enqueue(1)
    settings.TASKS = {"default": {"BACKEND": "machinequeue.MachineBackend", "QUEUES": {"other": {}}}}
    found = only("queues")
    assert (found.status, "queue default of default" in found.sentence) == (Status.WARNING, True)


# CPUs -----------------------------------------------------------------------------------------------------------------


def test_a_task_that_computes_for_long_on_shared_cpus(only: Only) -> None:
    result = tasks.add.enqueue(1)
    path = tasks.add.module_path
    assert only("cpu").status == Status.OK
    profiles.learn(path, 1, 300.0, None)
    found = only("cpu")
    assert found.status == Status.WARNING
    assert f"{path} usually takes 300 s on 1 shared CPU." in found.sentence
    assert "cpu_kind='performance'" in found.remedy
    assert result.id


def test_an_image_that_machines_came_up_with(clinic: Any, only: Only) -> None:
    machine = reserved(tasks.add.enqueue(1))
    check_in(machine)
    clinic(IMAGE=machine.image)
    found = only("image")
    assert (found.status, f"1 machine came up with {IMAGE}" in found.sentence) == (Status.OK, True)
