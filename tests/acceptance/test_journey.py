"""The whole journey of one task: real HTTP, real processes, a real database and a real wake-up; every row looked at."""

import datetime
import os
import re
from pathlib import Path
from typing import Any

import psutil
from django.db import connection, transaction

from machinequeue.models import Attempt, Dispatcher, Machine, OutputChunk, Queue, Release, TaskProfile, TaskRun
from tests.waiting import until
from tests.workshop import tasks
from tests.world import APP, IMAGE, World

NEARLY = datetime.timedelta(milliseconds=50 if connection.vendor == "sqlite" else 0)


def test_the_journey_of_one_task(empty_shop: World, tmp_path: Path) -> None:
    world = empty_shop
    dispatcher = world.dispatcher()
    gate = tmp_path / "gate"

    # The row is the caller's until the commit.
    with transaction.atomic():
        result = tasks.wait_for.using(priority=5, timeout=120, max_attempts=2).enqueue(str(gate), "on my way")
        assert (str(result.status), result.attempts) == ("READY", 0)
    ready = TaskRun.objects.get(pk=result.id)
    assert (ready.task, ready.args, ready.kwargs) == ("tests.workshop.tasks.wait_for", [str(gate), "on my way"], {})
    assert (ready.queue, ready.priority, ready.timeout, ready.max_attempts) == ("default", 5, 120.0, 2)

    # A machine is made for it and runs it.
    until(lambda: result.output == "on my way\n", 60, world.said)
    running = TaskRun.objects.get(pk=result.id)
    until(lambda: Machine.objects.get().state == "started", 60, world.said)
    machine = Machine.objects.get()
    assert (running.status, running.epoch) == ("RUNNING", 1)
    assert running.lease_expires_at is not None
    assert (machine.status, machine.state, str(machine.launched_for_id)) == ("busy", "started", result.id)
    assert result.why() == f"running: attempt 1 on {machine.name}"
    assert_process_tree(world, machine, dispatcher.popen.pid, gate)

    # It ends, and so does its machine.
    gate.touch()
    world.finish(result)
    assert (str(result.status), result.return_value, result.errors) == ("SUCCESSFUL", "the gate is open", [])
    world.all_gone()

    run, attempt, machine = TaskRun.objects.get(), Attempt.objects.get(), Machine.objects.get()
    assert_run(run, result)
    assert_attempt(attempt, run, machine)
    assert_machine(machine, run)
    assert_order(run, attempt, machine)
    assert_api(world, machine)
    assert [(chunk.text, chunk.dropped) for chunk in OutputChunk.objects.order_by("id")] == [("on my way\n", 0)]
    assert_other_rows()

    # The dispatcher ends when it is asked to; nothing is left behind.
    assert dispatcher.end() == 0
    assert not Dispatcher.objects.exists()
    assert not psutil.pid_exists(dispatcher.popen.pid)
    below = psutil.Process(world.emulator.pid).children(recursive=True)
    assert [process.name() for process in below] == ["mq-host"], "the emulator forks machines from it"
    assert world.machine_processes() == []


def assert_process_tree(world: World, machine: Machine, dispatcher: int, gate: Path) -> None:
    """The machine is a tree of processes under the emulator: supervisor, template, task processes."""
    tree = {process.pid for process in psutil.Process(world.emulator.pid).children(recursive=True)}
    processes = world.machine_processes()
    assert len(processes) >= 3
    [mark] = gate.parent.glob(f"{gate.name}.*.started")
    assert int(mark.name.split(".")[-2]) in {process.pid for process in processes}
    for process in processes:
        assert process.environ()["MACHINEQUEUE_MACHINE"] == machine.name
        assert process.pid not in (os.getpid(), dispatcher)
        assert process.pid in tree
    with_name = [process for process in processes if machine.name in process.cmdline()]
    assert with_name, "it was started as manage.py mq_run <machine name>"


def assert_run(run: TaskRun, result: Any) -> None:
    assert (str(run.pk), run.status, run.epoch, run.return_value) == (result.id, "SUCCESSFUL", 1, "the gate is open")
    assert (run.task_attempts, run.lost_attempts, run.lease_expires_at, run.reason) == (0, 0, None, "")
    assert (run.cancel_requested_at, run.checkpoint, run.progress) == (None, None, None)
    assert result.enqueued_at == run.enqueued_at
    assert result.started_at == result.last_attempted_at == run.started_at
    assert result.finished_at == run.finished_at


def assert_attempt(attempt: Attempt, run: TaskRun, machine: Machine) -> None:
    assert (attempt.run_id, attempt.epoch, attempt.machine_id) == (run.pk, 1, machine.pk)
    assert (attempt.status, attempt.exit_code, attempt.signal, attempt.error) == ("succeeded", 0, None, "")
    assert attempt.boot_id == machine.boot_id != ""
    assert attempt.pid is not None
    assert not psutil.pid_exists(attempt.pid)
    assert attempt.seconds is not None
    assert attempt.peak_memory_mb is not None
    assert attempt.peak_memory_mb > 5
    assert attempt.stages is not None
    assert all(0 <= seconds < 60 for seconds in attempt.stages.values())


def assert_machine(machine: Machine, run: TaskRun) -> None:
    assert re.fullmatch(r"mq-default-[0-9a-f]{12}", machine.name)
    assert (machine.app, machine.image, machine.queue, machine.region) == (APP, IMAGE, "default", "iad")
    assert (machine.spec, machine.spec_key) == (run.spec, run.spec_key)
    assert (machine.status, machine.state, machine.runs) == ("gone", "destroyed", 1)
    assert machine.reason == "nothing is ready"
    event = machine.exit_event
    assert event is not None
    assert (event["exit_code"], event["oom_killed"], event["requested_stop"]) == (0, False, False)


def assert_order(run: TaskRun, attempt: Attempt, machine: Machine) -> None:
    """Each instant is the database's, so they can be compared to the microsecond."""
    steps = [
        ("enqueued", run.enqueued_at),
        ("reserved", machine.reserved_at),
        ("requested", machine.requested_at),
        ("booted", machine.booted_at),
        ("claimed", attempt.claimed_at),
        ("finished", run.finished_at),
        ("gone", machine.gone_at),
        ("deadline", machine.deadline_at),
    ]
    assert steps == sorted(steps, key=lambda step: step[1]), steps  # type: ignore[arg-type, return-value]
    assert machine.requested_at <= machine.created_at <= machine.gone_at  # type: ignore[operator]
    # One statement each on PostgreSQL; on SQLite two of one transaction, each with its own clock.
    assert run.started_at == run.last_attempted_at
    assert abs(run.started_at - attempt.claimed_at) <= NEARLY
    assert abs(run.finished_at - attempt.finished_at) <= NEARLY
    written = OutputChunk.objects.get().written_at
    assert attempt.claimed_at <= written <= attempt.finished_at


def assert_api(world: World, machine: Machine) -> None:
    """What the Machines API knows agrees with the rows."""
    [seen] = world.emulator.machines()
    assert (seen.id, seen.name, seen.state, seen.region) == (machine.fly_id, machine.name, "destroyed", "iad")
    assert seen.exit_event is not None
    assert seen.exit_event.exit_code == 0
    journal = list(world.emulator.journal())
    [create] = [line for line in journal if line["kind"] == "request" and line["method"] == "POST"]
    assert create["path"] == f"/v1/apps/{APP}/machines"
    assert machine.request_ids == [create["request_id"]]
    events = [line["type"] for line in journal if line.get("machine") == machine.fly_id and "type" in line]
    assert [each for each in events if each in ("launch", "start", "exit", "destroy")] == [
        "launch",
        "start",
        "exit",
        "destroy",
    ]


def assert_other_rows() -> None:
    assert Release.objects.get().image == IMAGE
    assert TaskProfile.objects.get().task == "tests.workshop.tasks.wait_for"
    queue = Queue.objects.get(name="default")
    assert (queue.paused_at, queue.failures, queue.launch_after) == (None, 0, None)
