"""The world misbehaves: hosts, boots, memory, the API, clocks. Nothing is lost, nothing ends on a guess."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from machinequeue.models import Machine
from tests.crash import checker
from tests.crash.scene import Scene
from tests.waiting import until
from tests.workshop import ledger

MAX_MACHINES = 4
SETTINGS = {
    "LEASE_SECONDS": 3,
    "SILENT_SECONDS": 2,
    "BOOT_TIMEOUT": 4,
    "CHECK_IN_TIMEOUT": 20,
    "MAX_MACHINES": MAX_MACHINES,
}


def history(result: Any) -> list[str]:
    result.refresh()
    return [each["status"] for each in result.history]


def assert_once(scene: Scene, result: Any) -> None:
    """The run was executed once, on the one machine that was ever made."""
    verdict = scene.drained()
    assert verdict.good, str(verdict)
    assert (verdict.executions, verdict.repeated, history(result)) == (1, 0, ["succeeded"])
    [machine] = [each for each in scene.world.emulator.machines() if each.name == scene.machine(result).name]
    assert machine.exit_event is not None
    assert machine.exit_event.exit_code == 0, scene.world.said()


def assert_again(scene: Scene, result: Any, first: str) -> None:
    """A first attempt ended so, and a second one is recorded."""
    verdict = scene.drained()
    assert verdict.good, str(verdict)
    assert (verdict.executions, verdict.repeated, history(result)) == (2, 0, [first, "succeeded"])


# --- Machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_host_of_a_machine_is_lost_and_comes_back(scene: Scene, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = scene.enqueue(ledger.job, gate=str(gate))
    scene.started(result)
    with scene.world.emulator.faults.vanish(scene.machine(result).fly_id):
        scene.started(result, times=2)
    gate.touch()
    assert_again(scene, result, "lost")


@pytest.mark.slow
def test_a_machine_whose_supervisor_hangs_is_destroyed(scene: Scene, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = scene.enqueue(ledger.job, gate=str(gate))
    scene.started(result)
    scene.supervisor(scene.machine(result)).send_signal(signal.SIGSTOP)
    scene.started(result, times=2)
    gate.touch()
    assert_again(scene, result, "lost")


def test_a_machine_migrates(scene: Scene, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = scene.enqueue(ledger.job, gate=str(gate))
    scene.started(result)
    scene.world.emulator.faults.migrate(scene.machine(result).fly_id)
    scene.started(result, times=2)
    gate.touch()
    assert_again(scene, result, "interrupted")


@pytest.mark.parametrize("destroyed", [True, False], ids=["and is destroyed", "although it was to be destroyed"])
def test_a_machine_that_boots_after_it_was_given_up_runs_nothing(scene: Scene, destroyed: bool) -> None:
    faults = scene.world.emulator.faults
    faults.add("late_boot", "create", delay=8, times=1)
    if not destroyed:
        faults.add("server_error", "destroy", seconds=12)
    result = scene.enqueue(ledger.job)
    scene.world.finish(result)
    verdict = scene.drained(60)
    assert verdict.good, str(verdict)
    assert (verdict.executions, history(result)) == (1, ["succeeded"])
    late = Machine.objects.order_by("id")[0]
    assert late.attempts.count() == 0
    if not destroyed:
        assert "machine.late" in scene.world.emulator.output(late.fly_id)


def test_a_task_process_is_killed_for_want_of_memory(scene: Scene, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = scene.enqueue(ledger.job, gate=str(gate))
    scene.started(result)
    scene.world.emulator.faults.run_out_of_memory(scene.machine(result).fly_id)
    scene.started(result, times=2)
    gate.touch()
    verdict = scene.drained()
    assert verdict.good, str(verdict)
    assert (verdict.executions, history(result)[-1]) == (2, "succeeded")


def test_a_task_that_needs_more_memory_gets_it(scene: Scene) -> None:
    result = scene.enqueue(ledger.allocating, 700, 2.0)
    assert_again(scene, result, "out of memory")


# --- The API, while a machine is created ------------------------------------------------------------------------------

CREATING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "down": ("server_error", "any", {"seconds": 2}),
    "fails after the effect": ("server_error", "create", {"when": "after", "times": 1}),
    "times out after the effect": ("timed_out", "create", {"times": 1}),
    "loses the answer": ("lose_answer", "create", {"times": 1}),
    "resets the connection": ("reset", "create", {"times": 1}),
    "sends half an answer": ("broken_body", "create", {"times": 1}),
    "is slow": ("slow", "create", {"delay": 2, "times": 1}),
    "freezes": ("freeze", "", {"seconds": 2}),
    "limits the rate": ("rate_limited", "create", {"retry_after": 0.5, "times": 2}),
    "has no room": ("capacity", "create", {"times": 1}),
    "does not know it for a while": ("not_visible", "", {"seconds": 3}),
    "is an hour behind": ("clock", "", {"offset": -3600}),
    "is an hour ahead": ("clock", "", {"offset": 3600}),
}


@pytest.mark.parametrize("name", CREATING)
def test_a_machine_is_created_while_the_api(scene: Scene, name: str) -> None:
    kind, action, terms = CREATING[name]
    fault = scene.world.emulator.faults.add(kind, action or None, **terms)
    result = scene.enqueue(ledger.job)
    assert_once(scene, result)
    assert fault.fired or kind == "clock"


@pytest.mark.parametrize("after", [False, True], ids=["before it takes effect", "after it took effect"])
@pytest.mark.parametrize("drop", [False, True], ids=["answered", "unanswered"])
def test_a_dispatcher_is_killed_during_its_create_call(scene: Scene, after: bool, drop: bool) -> None:
    with scene.world.emulator.faults.hold("create", after=after, times=1) as hold:
        result = scene.enqueue(ledger.job)
        hold.wait()
        for dispatcher in scene.crew:
            dispatcher.end(signal.SIGKILL)
        hold.release(drop=drop)
        scene.let_pass(100)
        assert_once(scene, result)


# --- The API, while a machine works -----------------------------------------------------------------------------------

WORKING: dict[str, tuple[str, dict[str, Any]]] = {
    "is down": ("server_error", {}),
    "lists nothing": ("empty_list", {}),
    "lists what was": ("stale_list", {}),
    "does not answer": ("freeze", {"seconds": 3}),
    "is an hour behind": ("clock", {"offset": -3600}),
    "is an hour ahead": ("clock", {"offset": 3600}),
    "refuses the token": ("unauthorized", {}),
}


@pytest.mark.parametrize("name", WORKING)
def test_a_run_goes_on_while_the_api(scene: Scene, tmp_path: Path, name: str) -> None:
    kind, terms = WORKING[name]
    gate, faults = tmp_path / "gate", scene.world.emulator.faults
    if kind == "stale_list":
        faults.add(kind)  # from before there was a machine
    result = scene.enqueue(ledger.job, gate=str(gate))
    scene.started(result)
    fault = faults.list()[0] if kind == "stale_list" else faults.add(kind, **terms)
    until(lambda: fault.fired >= (1 if kind in ("freeze", "clock") else 5), 60, lambda: str(fault.described))
    gate.touch()
    scene.world.finish(result)
    fault.remove()
    assert_once(scene, result)


# --- Dispatchers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dispatchers_that_come_and_go_never_launch_more_than_is_allowed(scene: Scene) -> None:
    dice, begin = random.Random(11), time.time()
    scene.start_dispatchers(3)
    runs = [scene.enqueue(ledger.job.using(isolation="machine"), seconds=0.2) for _ in range(16)]
    for number in dice.choices((signal.SIGKILL, signal.SIGTERM), k=8):
        dice.choice(scene.crew).end(number)
        enough = min(len(scene.lines("start")) + 1, len(runs))
        scene.wait(lambda enough=enough: len(scene.lines("start")) >= enough, "nothing goes on")
    verdict = scene.drained(90)
    assert verdict.good, str(verdict)
    rows = checker.read_rows(scene.world.url)
    journal = [line for line in scene.world.emulator.journal() if line["at"] > begin]
    assert len(rows.machines) >= 16
    assert checker.most_at_once(rows)[""] == MAX_MACHINES
    assert checker.most_alive_at_once(journal) <= MAX_MACHINES
