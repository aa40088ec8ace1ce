"""Dispatchers that look after machines, and end in the middle of it."""

import re
import signal
import uuid

import pytest

from machinequeue.models import Attempt, Machine, TaskRun
from tests.containers.conftest import SANDBOX, running, sandbox
from tests.waiting import until
from tests.workshop import containers, tasks
from tests.world import World


@pytest.mark.slow
def test_a_dispatcher_that_is_killed_costs_an_attempt_and_its_machine(empty_shop: World) -> None:
    first = empty_shop.dispatcher()
    result = containers.patient.enqueue(["sleep", "100"])
    machine = running(empty_shop, result)
    first.popen.kill()
    first.popen.wait()
    empty_shop.dispatcher()
    another = running(empty_shop, result, epoch=2)
    assert another.pk != machine.pk
    with sandbox(empty_shop) as client:
        assert client.get(machine.fly_id).state == "destroyed"
    row = TaskRun.objects.get(pk=uuid.UUID(result.id))
    assert (row.lost_attempts, row.task_attempts) == (1, 0)
    result.cancel()
    empty_shop.finish(result, seconds=60)
    empty_shop.all_gone()


@pytest.mark.slow
def test_a_dispatcher_that_is_asked_to_stop_gives_the_run_back(empty_shop: World) -> None:
    first = empty_shop.dispatcher()
    result = containers.patient.enqueue(["sleep", "100"])
    running(empty_shop, result)
    assert first.end(signal.SIGTERM) == 0, first.said
    row = TaskRun.objects.get(pk=uuid.UUID(result.id))
    assert (row.status, row.lost_attempts, row.task_attempts) == ("READY", 0, 0)
    assert result.history[0]["status"] == "interrupted"
    empty_shop.dispatcher()
    running(empty_shop, result, epoch=2)
    result.cancel()
    empty_shop.finish(result, seconds=60)
    empty_shop.all_gone()


def test_two_dispatchers_run_each_once(empty_shop: World) -> None:
    empty_shop.dispatcher()
    empty_shop.dispatcher()
    results = [containers.run_python.enqueue(["sh", "-c", f"echo {number}"]) for number in range(6)]
    empty_shop.finish(*results, seconds=120)
    assert [each.return_value["stdout"] for each in results] == [f"{number}\n" for number in range(6)]
    assert Attempt.objects.count() == 6
    empty_shop.all_gone()


def test_a_dispatcher_with_one_thread_looks_after_all_in_turn(empty_shop: World) -> None:
    empty_shop.dispatcher(WORKSHOP_SETTINGS='{"CONTAINER_THREADS": 1}')
    results = [containers.run_python.enqueue(["sh", "-c", f"echo {number}"]) for number in range(3)]
    empty_shop.finish(*results, seconds=120)
    assert all(each.run_status == "SUCCESSFUL" for each in results)


def test_no_more_machines_are_launched_than_threads_look_after(empty_shop: World) -> None:
    empty_shop.dispatcher(WORKSHOP_SETTINGS='{"CONTAINER_THREADS": 1}')
    first, second = (containers.patient.enqueue(["sleep", "100"]) for _ in range(2))
    until(lambda: "1 of 1 container runs" in first.why() + second.why(), 60, empty_shop.said)
    assert Machine.objects.count() == 1
    for result in (first, second):
        result.cancel()
    empty_shop.finish(first, second, seconds=60)
    empty_shop.all_gone()


def test_an_app_that_cannot_be_made_says_what_to_do(empty_shop: World) -> None:
    with empty_shop.emulator.faults.add("answer", action="app-create", status=403, text="unauthorized"):
        empty_shop.dispatcher()
        result = containers.run_python.enqueue(["true"])
        ours = tasks.add.enqueue(1)
        remedies = re.compile(f"fly apps create {SANDBOX}.*fly tokens create deploy")
        until(lambda: remedies.search(result.why()), 60, result.why)
        empty_shop.finish(ours, seconds=60)  # which it does not hold back
    result.cancel()
