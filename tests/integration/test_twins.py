"""A machine that is started again, freezes, hangs, or loses a process of its runner; one run, one outcome."""

import signal
import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.models import Machine, OutputChunk, TaskProfile, TaskRun
from machinequeue.records import claims
from tests.waiting import until
from tests.workshop import stuck, tasks
from tests.world import APP, TOKEN, World


def started(gate: Path) -> list[int]:
    """The pids of the task processes that reached the gate."""
    return [int(mark.name.split(".")[-2]) for mark in gate.parent.glob(f"{gate.name}.*.started")]


def template_of(task: int) -> psutil.Process:
    parent = psutil.Process(task).parent()
    assert parent is not None
    return parent


def supervisor_of(task: int) -> psutil.Process:
    parent = template_of(task).parent()
    assert parent is not None
    return parent


def statuses(result: Any) -> list[str]:
    return [attempt["status"] for attempt in result.history]


def machine_of(result: Any) -> Machine:
    result.refresh()
    return Machine.objects.get(fly_id=result.worker_ids[0])


# Started again ------------------------------------------------------------------------------------------------------


def test_a_machine_that_is_started_again_gives_up_at_once_what_it_ran_before(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = tasks.wait_for.enqueue(str(gate))
    [pid] = until(lambda: started(gate), 60, shop.said)
    machine = machine_of(result)
    supervisor_of(pid).send_signal(signal.SIGSTOP)  # it does not hear that it is stopped
    answer = httpx.post(
        f"{shop.emulator.url}/v1/apps/{APP}/machines/{machine.fly_id}/restart",
        params={"timeout": "1s"},
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert answer.status_code == 200, answer.text
    until(lambda: len(started(gate)) == 2, 60, shop.said)
    assert not psutil.pid_exists(pid)
    gate.touch()
    shop.finish(result)
    assert statuses(result) == ["lost", "succeeded"]
    assert result.history[0]["diagnosis"]["sentence"] == f"machine {machine.name} was started again"
    before = machine.boot_id
    machine.refresh_from_db()
    assert machine.boot_id != before


# Frozen -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meanwhile", ["its task goes on", "its task has ended"])
def test_a_supervisor_that_was_frozen_while_another_took_its_run_over_writes_nothing(
    shop: World, tmp_path: Path, meanwhile: str
) -> None:
    gate, book = tmp_path / "gate", tmp_path / "book"
    result = tasks.ledger.enqueue(str(book), str(gate))
    [old] = until(lambda: started(gate), 60, shop.said)
    supervisor, machine = supervisor_of(old), machine_of(result)
    supervisor.send_signal(signal.SIGSTOP)
    TaskProfile.objects.all().delete()  # or its machine would be expected to be done soon, and no other be launched
    presumed_dead = Failure(AttemptStatus.LOST, sentence="presumed dead")
    assert claims.fail(uuid.UUID(result.id), 1, presumed_dead, claims.Report())
    [new] = until(lambda: [pid for pid in started(gate) if pid != old], 60, shop.said)
    if meanwhile == "its task has ended":
        gate.touch()
        shop.finish(result)
        supervisor.send_signal(signal.SIGCONT)
    else:
        supervisor.send_signal(signal.SIGCONT)
        until(lambda: not psutil.pid_exists(old), 60, "the old task runs on")
        assert psutil.pid_exists(new)
        gate.touch()
        shop.finish(result)

    until(lambda: "claim.lost" in shop.emulator.output(machine.fly_id), 60, shop.said)
    assert (result.return_value, statuses(result)) == ("done", ["lost", "succeeded"])
    assert result.history[0]["diagnosis"]["sentence"] == "presumed dead"
    assert TaskRun.objects.get(pk=result.id).epoch == 2
    lines = book.read_text().splitlines()
    assert [line for line in lines if line.startswith(f"{new} ")] == [f"{new} began", f"{new} ended"]
    assert (f"{old} ended" in lines) == (meanwhile == "its task has ended")
    assert f"run.succeeded run={result.id}" not in shop.emulator.output(machine.fly_id)
    assert not OutputChunk.objects.filter(attempt__run_id=result.id, attempt__epoch=1).exists()
    until(lambda: Machine.objects.get(pk=machine.pk).status == "idle", 60, "it looks for more to do")
    with shop.emulator.client() as client:
        client.stop(machine.fly_id)
    until(lambda: Machine.objects.get(pk=machine.pk).status == "gone", 60, shop.said)
    event = Machine.objects.get(pk=machine.pk).exit_event
    assert event is not None
    assert event["exit_code"] == 0


# Killed from within -------------------------------------------------------------------------------------------------


def test_when_the_template_is_killed_its_run_is_lost_at_once_and_the_machine_fails(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = tasks.deaf.enqueue(str(gate))
    [pid] = until(lambda: started(gate), 60, shop.said)
    [child] = until(lambda: [int(mark.name.partition(".")[0]) for mark in tmp_path.glob("*.escaped")], 60)
    machine = machine_of(result)
    template_of(pid).kill()
    until(lambda: result.history[0]["status"] == "lost", 60, shop.said)
    assert not psutil.pid_exists(pid)
    assert not psutil.pid_exists(child)
    assert result.history[0]["diagnosis"]["sentence"] == "its template process ended"
    until(lambda: Machine.objects.get(pk=machine.pk).status == "gone", 60, shop.said)
    machine.refresh_from_db()
    assert machine.exit_event is not None
    assert machine.exit_event["exit_code"] == 1
    assert machine.reason == "its runner failed: Closed"
    gate.touch()
    shop.finish(result)
    assert statuses(result) == ["lost", "succeeded"]


def test_a_runner_that_fails_strands_no_run(shop: World) -> None:
    result = tasks.garbles.enqueue()
    after = tasks.add.enqueue(1, 1)
    shop.finish(result, after, seconds=60)
    assert after.return_value == 2
    assert statuses(result) == ["lost", "lost", "lost"]
    assert "given up after 3 attempts lost with their machines" in result.why()
    assert "its runner failed: JSONDecodeError" in result.history[0]["diagnosis"]["sentence"]


def test_a_process_that_died_while_it_waited_for_a_run_costs_none(shop: World) -> None:
    alone = tasks.warm.using(memory_mb=768)  # with a machine of its own
    first = alone.enqueue()
    shop.finish(first)
    machine = machine_of(first)
    until(lambda: Machine.objects.get(pk=machine.pk).status == "idle", 60, shop.said)
    main = next(each for each in shop.machine_processes() if is_supervisor(each, machine))
    [template] = main.children()
    [spare] = template.children()
    spare.kill()
    until(lambda: not spare.is_running(), 60)
    second = alone.enqueue()
    shop.finish(second)
    assert (second.worker_ids, statuses(second)) == (first.worker_ids, ["succeeded"])


def is_supervisor(process: psutil.Process, machine: Machine) -> bool:
    parent = process.parent()
    return machine.name in process.cmdline() and parent is not None and parent.name() == "mq-init"


def test_a_module_that_hangs_where_it_is_imported_is_over_its_timeout(shop: World) -> None:
    result = stuck.stuck.using(queue_name="alone").enqueue()
    shop.finish(result)
    assert statuses(result) == ["timed out"]
    assert result.why() == "the module of task tests.workshop.stuck.stuck had not been imported after 2 s"
    machine = machine_of(result)
    until(lambda: Machine.objects.get(pk=machine.pk).status == "gone", 60, shop.said)
    assert Machine.objects.get(pk=machine.pk).reason == "its runner failed: Stuck"


def test_a_module_that_hangs_in_a_process_forked_before_costs_its_machine_nothing(shop: World) -> None:
    before = tasks.warm.enqueue()
    shop.finish(before)
    until(lambda: Machine.objects.filter(queue="warm", status="idle").exists(), 60, shop.said)
    result = stuck.stuck.using(queue_name="warm").enqueue()
    shop.finish(result)
    after = tasks.warm.enqueue()  # not before: a machine launched for it would import what hangs
    shop.finish(after)
    assert (statuses(result), statuses(after)) == (["timed out"], ["succeeded"])
