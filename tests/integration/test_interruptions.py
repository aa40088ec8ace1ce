"""Tasks that are interrupted: what they may still save, how soon they hear it, and that nothing of them lives on."""

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import connection

from machinequeue.models import Attempt, Machine, TaskRun
from tests.waiting import until
from tests.workshop import tasks
from tests.world import World


def started(gate: Path) -> list[int]:
    """The pids of the task processes that reached the gate."""
    return [int(mark.name.split(".")[-2]) for mark in gate.parent.glob(f"{gate.name}.*.started")]


def escaped(folder: Path) -> list[int]:
    """The pids of processes that left their task's session."""
    return [int(mark.name.partition(".")[0]) for mark in folder.glob("*.escaped")]


def stop_machine(shop: World, result: Any) -> None:
    result.refresh()
    with shop.emulator.client() as client:
        client.stop(result.worker_ids[-1])


def statuses(result: Any) -> list[str]:
    return [attempt["status"] for attempt in result.history]


# Checkpoints --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_stored_while_the_task_runs_and_survives_a_machine_that_is_killed(
    shop: World, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    result = tasks.counts_on.enqueue(str(gate))
    until(lambda: TaskRun.objects.get(pk=result.id).checkpoint == {"count": 1}, 60, shop.said)
    result.refresh()
    with shop.emulator.client() as client:
        client.destroy(result.worker_ids[0], force=True)
    until(lambda: len(started(gate)) == 2, 60, shop.said)
    gate.touch()
    shop.finish(result)
    assert result.return_value == [1, 3], "it went on where it was"
    assert statuses(result) == ["lost", "succeeded"]
    assert len(set(result.worker_ids)) == 2


@pytest.mark.parametrize(
    ("name", "saved"),
    [("saves_when_interrupted", "TaskInterruption"), ("saves_when_interrupted_async", "cancelled")],
)
def test_a_task_saves_in_the_last_moment_of_its_machine_and_resumes_on_another(
    shop: World, tmp_path: Path, name: str, saved: str
) -> None:
    gate = tmp_path / "gate"
    result = getattr(tasks, name).enqueue(str(gate))
    until(lambda: started(gate), 60, shop.said)
    stop_machine(shop, result)
    shop.finish(result)
    assert result.return_value == saved
    assert statuses(result) == ["interrupted", "succeeded"]
    assert len(set(result.worker_ids)) == 2
    run = TaskRun.objects.get(pk=result.id)
    assert (run.task_attempts, run.lost_attempts) == (0, 1)


def test_a_checkpoint_saved_just_before_a_failure_is_there_for_the_next_attempt(shop: World) -> None:
    result = tasks.fails_after_saving.enqueue()
    shop.finish(result)
    assert result.return_value == [1, "é", None]
    assert statuses(result) == ["failed", "succeeded"]


@pytest.mark.parametrize(
    ("size", "error", "says"),
    [(0, TypeError, "the checkpoint is a set"), (1 << 20, ValueError, "store it as a file and save its name")],
)
def test_what_is_no_checkpoint_is_refused_where_it_is_saved(
    shop: World, size: int, error: type[Exception], says: str
) -> None:
    result = tasks.saves_badly.enqueue(size)
    shop.finish(result)
    assert result.errors[0].exception_class is error
    assert says in result.why()
    assert TaskRun.objects.get(pk=result.id).checkpoint is None


def test_a_task_that_finishes_while_its_machine_is_stopped_has_succeeded(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = tasks.finishes_when_interrupted.enqueue(str(gate))
    until(lambda: started(gate), 60, shop.said)
    stop_machine(shop, result)
    shop.finish(result)
    assert (result.return_value, statuses(result)) == ("finished all the same", ["succeeded"])


# Cancel -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_cancel_is_heard_within_about_a_second(shop: World, tmp_path: Path, when: str) -> None:
    gate = tmp_path / "gate"
    result = tasks.wait_for.enqueue(str(gate))
    [pid] = until(lambda: started(gate), 60, shop.said)
    if when == "later":  # after its first heartbeat the machine listens
        until(lambda: Attempt.objects.get(run_id=result.id).pid, 60)
    asked_at = time.monotonic()
    assert result.cancel()
    until(lambda: not psutil.pid_exists(pid), 60)
    took = time.monotonic() - asked_at
    shop.finish(result)
    assert result.run_status == "CANCELLED"
    if connection.vendor == "postgresql":
        assert took < 8, "it waited for a heartbeat"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a cancel", "its machine's stop"])
def test_a_task_that_ignores_its_interruption_is_killed_with_the_child_that_left_its_session(
    shop: World, tmp_path: Path, what: str
) -> None:
    gate = tmp_path / "gate"
    result = tasks.deaf.enqueue(str(gate))
    [pid] = until(lambda: started(gate), 60, shop.said)
    [child] = until(lambda: escaped(tmp_path), 60)
    assert psutil.pid_exists(child)
    if what == "a cancel":
        assert result.cancel()
    else:
        stop_machine(shop, result)
    until(lambda: statuses(result)[0] != "running", 60, shop.said)
    assert not psutil.pid_exists(pid)
    assert not psutil.pid_exists(child)
    gate.touch()
    shop.finish(result)
    assert statuses(result) == (["cancelled"] if what == "a cancel" else ["interrupted", "succeeded"])
    if what != "a cancel":
        stopped = Machine.objects.get(fly_id=result.worker_ids[0])
        until(lambda: Machine.objects.get(pk=stopped.pk).status == "gone", 60, shop.said)
        stopped.refresh_from_db()
        assert (stopped.exit_event or {})["exit_code"] == 0, "the last writes fit into the time that a machine gets"


# Strays -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["process", "shared"])
@pytest.mark.parametrize(("name", "status"), [("escapes_and_hangs", "timed out"), ("escapes_and_dies", "failed")])
def test_what_a_task_let_escape_is_dead_when_its_failure_is_recorded(
    shop: World, tmp_path: Path, name: str, status: str, isolation: str
) -> None:
    result = getattr(tasks, name).using(isolation=isolation).enqueue(str(tmp_path))
    [stray] = until(lambda: escaped(tmp_path), 60, shop.said)
    while TaskRun.objects.get(pk=result.id).status == "RUNNING":
        pass
    assert not psutil.pid_exists(stray)
    shop.finish(result)
    assert statuses(result) == [status]


@pytest.mark.parametrize("isolation", ["process", "shared"])
def test_what_a_task_that_succeeded_left_behind_does_not_live_on(shop: World, tmp_path: Path, isolation: str) -> None:
    result = tasks.escapes_and_returns.using(isolation=isolation).enqueue(str(tmp_path))
    shop.finish(result)
    assert (result.return_value, statuses(result)) == ("fine", ["succeeded"])
    [orphan], [child] = escaped(tmp_path), [int(mark.stem) for mark in tmp_path.glob("*.child")]
    until(lambda: not psutil.pid_exists(orphan), 60, f"{orphan} lives on")
    if isolation == "process":  # in a shared one it has a parent still, who may want it in its next run
        until(lambda: not psutil.pid_exists(child), 60, f"{child} lives on")


def test_a_run_keeps_its_daemons_while_the_process_of_the_run_before_it_ends(shop: World, tmp_path: Path) -> None:
    """Runs follow each other closely on one machine: the strays of one are told from the daemons of the next."""
    results = [tasks.keeps_a_daemon.enqueue(str(tmp_path)) for _ in range(20)]
    shop.finish(*results)
    assert [result.return_value for result in results] == ["it lived"] * 20
    until(lambda: not [pid for pid in escaped(tmp_path) if psutil.pid_exists(pid)], 60)


# Output -------------------------------------------------------------------------------------------------------------


def test_a_task_that_prints_without_end_cannot_keep_its_timeout_from_being_enforced(shop: World) -> None:
    result = tasks.flood.enqueue()
    shop.finish(result)
    assert [each["status"] for each in result.history] == ["timed out"], result.history
    assert result.history[0]["seconds"] < 60
    assert "bytes dropped" in result.output
