"""A process is killed at each step of a run's way. Nothing is lost, nothing counts twice, nothing is left behind."""

import signal
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from machinequeue.models import Dispatcher, Machine, TaskRun
from tests.crash.scene import Scene, alive, kill
from tests.waiting import until
from tests.workshop import ledger


def history(result: Any) -> list[str]:
    result.refresh()
    return [each["status"] for each in result.history]


def assert_right(scene: Scene, point: str, runs: int = 1) -> Any:
    """Everything drains, the checker has nothing to say, and the point was reached."""
    verdict = scene.drained()
    assert verdict.good, str(verdict)
    assert verdict.runs == runs
    pid = scene.fired(point)
    assert pid, f"nothing reached {point}: {scene.world.said()}"
    assert not alive(pid)
    return verdict


# --- Who enqueues -----------------------------------------------------------------------------------------------------


COMMITTED = {"before_commit": 0, "after_commit": 1, "before_wakeup": 1, "after_wakeup": 1}
"""Runs that are there when the enqueuer dies at a point."""


@pytest.mark.parametrize("point", COMMITTED)
def test_who_enqueues_is_killed(scene: Scene, point: str) -> None:
    runs = COMMITTED[point]
    scene.arm(f"enqueue.{point}")
    enqueuer = scene.world.command("enqueue", "2")
    until(lambda: enqueuer.popen.poll() is not None, 60)
    assert enqueuer.popen.returncode == -9, enqueuer.said
    verdict = assert_right(scene, f"enqueue.{point}", TaskRun.objects.count())
    assert verdict.runs >= runs, "what was committed is there"
    assert verdict.runs <= runs + 1, "it died before its second enqueue was over"
    assert verdict.executions == verdict.runs


# --- Dispatchers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "before_reserve",
        "in_reserve",
        "after_reserve",
        "after_requesting",
        "after_create",
        "after_created",
        "leading",
    ],
)
def test_a_dispatcher_is_killed(scene: Scene, point: str) -> None:
    scene.arm(f"dispatcher.{point}")
    result = scene.enqueue(ledger.job)
    until(lambda: scene.fired(f"dispatcher.{point}"), 60, scene.world.said)
    scene.let_pass(100)
    verdict = assert_right(scene, f"dispatcher.{point}")
    assert (verdict.executions, verdict.repeated) == (1, 0)
    assert history(result) == ["succeeded"]
    made = [f"{each.name}: {each.reason}" for each in Machine.objects.all()]
    assert len(made) == 1, "the reservation was taken over, not repeated"


@pytest.mark.parametrize("point", ["before_list", "before_fail", "after_fail", "before_gone", "after_gone"])
def test_the_leader_is_killed_while_it_reconciles(scene: Scene, tmp_path: Path, point: str) -> None:
    gate = tmp_path / "gate"
    result = scene.enqueue(ledger.job, gate=str(gate))
    [begun] = scene.started(result)
    scene.arm(f"reconciler.{point}")
    kill(scene.supervisor(scene.machine(result)).pid)
    until(lambda: not alive(begun.pid), 60)
    gate.touch()
    verdict = assert_right(scene, f"reconciler.{point}")
    assert (verdict.executions, verdict.repeated) == (2, 0)
    assert history(result) == ["lost", "succeeded"]


def test_another_dispatcher_leads_when_the_leader_dies_for_good(scene: Scene, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    scene.start_dispatchers(2)
    result = scene.enqueue(ledger.job, gate=str(gate))
    [begun] = scene.started(result)
    leaders = until(lambda: Dispatcher.objects.filter(leads_until__gt=Now()).values_list("name", flat=True), 60)
    [leader] = [process for process in scene.crew if f"-{process.popen.pid}-" in leaders[0]]
    scene.crew.remove(leader)
    leader.end(signal.SIGKILL)
    kill(scene.supervisor(scene.machine(result)).pid)
    until(lambda: not alive(begun.pid), 60)
    gate.touch()
    verdict = scene.drained()
    assert verdict.good, str(verdict)
    assert (verdict.executions, history(result)) == (2, ["lost", "succeeded"])
    [led] = Dispatcher.objects.filter(leads_until__gt=Now()).values_list("name", flat=True)
    assert led != leaders[0]


# --- Machines ---------------------------------------------------------------------------------------------------------


SUPERVISOR: dict[str, tuple[list[str], int]] = {
    "before_check_in": (["succeeded"], 1),
    "after_check_in": (["succeeded"], 1),
    "before_claim": (["succeeded"], 1),
    "after_claim": (["lost", "succeeded"], 1),
    "after_fork": (["lost", "succeeded"], 1),
    "before_success": (["lost", "succeeded"], 2),
    "after_success": (["succeeded"], 1),
    "before_leaving": (["succeeded"], 1),
    "after_leaving": (["succeeded"], 1),
}
"""What becomes of the attempts, and how often the task was executed, when the supervisor dies at a point."""


@pytest.mark.parametrize("point", SUPERVISOR)
def test_a_supervisor_is_killed(scene: Scene, point: str) -> None:
    attempts, executions = SUPERVISOR[point]
    scene.arm(f"runner.{point}")
    result = scene.enqueue(ledger.job)
    verdict = assert_right(scene, f"runner.{point}")
    assert (verdict.executions, verdict.repeated) == (executions, executions - 1)
    assert history(result) == attempts


@pytest.mark.parametrize("point", ["before_failure", "after_failure"])
def test_a_supervisor_is_killed_as_it_records_a_failure(scene: Scene, point: str) -> None:
    scene.arm(f"runner.{point}")
    result = scene.enqueue(ledger.raising, ends=("FAILED",))
    assert_right(scene, f"runner.{point}")
    assert history(result) == (["lost", "failed"] if point == "before_failure" else ["failed"])


@pytest.mark.parametrize("point", ["before_heartbeat", "after_heartbeat"])
def test_a_supervisor_is_killed_in_the_middle_of_a_task(scene: Scene, tmp_path: Path, point: str) -> None:
    gate = tmp_path / "gate"
    scene.arm(f"runner.{point}")
    result = scene.enqueue(ledger.job, gate=str(gate))
    scene.started(result, times=2)
    gate.touch()
    verdict = assert_right(scene, f"runner.{point}")
    assert (verdict.executions, verdict.repeated) == (2, 0), "the first task process died with its supervisor"
    assert history(result) == ["lost", "succeeded"]


LOST, FAILED, AT_ONCE = ["lost", "succeeded"], ["failed", "succeeded"], ["succeeded"]
BELOW: dict[str, tuple[list[list[str]], set[int]]] = {
    "template.before_fork": ([LOST], {1}),
    "template.after_fork": ([LOST, AT_ONCE], {1, 2}),  # the task process may be quicker than the news
    "task.before_call": ([FAILED], {1}),
    "task.after_call": ([FAILED], {2}),
}
"""What may become of the attempts, and how often the task may be executed."""


@pytest.mark.parametrize("point", BELOW)
def test_a_process_below_the_supervisor_is_killed(scene: Scene, point: str) -> None:
    attempts, executions = BELOW[point]
    scene.arm(point)
    result = scene.enqueue(ledger.job)
    verdict = assert_right(scene, point)
    assert verdict.executions in executions
    assert history(result) in attempts


UNANSWERED = {
    "runner.after_check_in": ["succeeded"],
    "runner.after_claim": ["succeeded"],
    "runner.after_success": ["succeeded"],
    "runner.after_leaving": ["succeeded"],
}


@pytest.mark.parametrize("point", UNANSWERED)
def test_the_answer_to_a_commit_is_lost(scene: Scene, point: str) -> None:
    scene.arm(point, "lose")
    result = scene.enqueue(ledger.job)
    verdict = scene.drained()
    assert scene.fired(point)
    assert verdict.good, str(verdict)
    assert verdict.executions == 1
    assert history(result) == UNANSWERED[point]


# --- Frozen, and thought dead -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resumed", ["while the other attempt runs", "when all is over"])
def test_a_supervisor_that_was_frozen_finds_its_run_taken_over(scene: Scene, tmp_path: Path, resumed: str) -> None:
    # The API believes a machine destroyed whose processes live on, as on a host that is cut off from Fly. So the
    # runner is started here: what the emulator started for the machine freezes first.
    gate = tmp_path / "gate"
    scene.arm("runner.before_check_in", "stop")
    result = scene.enqueue(ledger.job, gate=str(gate))
    until(lambda: scene.fired("runner.before_check_in"), 60, scene.world.said)
    first = Machine.objects.get()
    cut_off = scene.world.command("mq_run", first.name, MACHINEQUEUE_MACHINE=first.name, FLY_MACHINE_ID=first.fly_id)
    [begun] = scene.started(result)
    cut_off.popen.send_signal(signal.SIGSTOP)
    with scene.world.emulator.client() as client:
        client.destroy(first.fly_id, force=True)
    scene.started(result, times=2)
    if resumed == "when all is over":
        gate.touch()
        scene.world.finish(result)
    cut_off.popen.send_signal(signal.SIGCONT)
    until(lambda: not alive(begun.pid), 60, scene.world.said)
    assert cut_off.popen.wait(60) == 0, cut_off.said
    gate.touch()
    verdict = scene.drained()
    assert verdict.good, str(verdict)
    assert (verdict.executions, verdict.repeated) == (2, int(resumed == "when all is over"))
    assert history(result) == ["lost", "succeeded"]
