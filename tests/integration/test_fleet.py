"""`mq_machines`: what an operator sees of the machines, and does to them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machinequeue.machines import prices, schema
from machinequeue.machines.schema import CreateRequest, Guest
from machinequeue.models import Attempt, TaskRun
from tests.waiting import until
from tests.workshop import tasks
from tests.world import IMAGE, World


def said(shop: World, *words: str, code: int = 0, **changes: str) -> str:
    """What `mq_machines` says, which ends with this code."""
    process = shop.command("mq_machines", *words, **changes)
    assert process.popen.wait(60) == code, process.said
    return process.said


def state(shop: World, machine_id: str) -> str:
    with shop.emulator.client() as client:
        return client.get(machine_id).state


@pytest.fixture
def busy(shop: World, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """A run, and the machine that is at it."""
    gate = tmp_path / "gate"
    result = tasks.wait_for.using(isolation="machine").enqueue(str(gate), "said by the task")
    until(lambda: list(tmp_path.glob("gate.*.started")), 60, shop.said)
    yield result, Attempt.objects.get(run=result.id).machine
    gate.touch()
    shop.finish(result, seconds=60)


@pytest.fixture
def foreign(shop: World) -> Iterator[schema.Machine]:
    """A machine of somebody else in the same app."""
    config = {"image": IMAGE, "init": {"cmd": ["sleep", "600"]}, "guest": Guest().as_dict()}
    with shop.emulator.client() as client:
        made = client.create(CreateRequest(name="web-1", region="iad", config=config))
        until(lambda: client.get(made.id).state == "started", 60)
        yield made
        client.destroy(made.id, force=True)
        until(lambda: client.get(made.id).state == "destroyed", 60)


def test_a_table_of_our_machines(shop: World, busy: Any, foreign: schema.Machine) -> None:
    _, machine = busy
    table = said(shop)
    [line] = [line for line in table.splitlines() if line.startswith(machine.name)]
    assert line.split()[:7] == [machine.name, machine.fly_id, "started", "iad", "1s", "512", "MB"]
    assert line.endswith("busy")
    assert all(len(line) <= 100 for line in table.splitlines())
    assert "web-1" not in table
    [other] = [line for line in said(shop, "list", "--all").splitlines() if line.startswith("web-1")]
    assert other.endswith("not ours")
    assert "web-1" in said(shop, "--all"), "what the command without a word lists takes the options of `list`"
    assert "web-1" in said(shop, "--all", "list")
    assert machine.fly_id in {each["id"] for each in json.loads(said(shop, "--json"))}
    listed = json.loads(said(shop, "list", "--json"))
    assert [each["id"] for each in listed if each["name"] == machine.name] == [machine.fly_id]


def test_one_machine_with_its_run_and_without_its_environment(shop: World, busy: Any) -> None:
    result, machine = busy
    shown = said(shop, "show", machine.name)
    assert result.id in shown
    assert "tests.workshop.tasks.wait_for" in shown
    described = json.loads(said(shop, "show", machine.fly_id, "--json"))
    assert described["runs"] == [{"id": result.id, "task": "tests.workshop.tasks.wait_for"}]
    assert described["usd_per_hour"] == pytest.approx(0.00513, rel=0.1)
    assert shop.url not in shown
    assert "DATABASE_URL" not in shown


def test_what_a_machine_prints_is_followed_until_it_is_gone(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = tasks.wait_for.using(isolation="machine").enqueue(str(gate), "said by the task")
    until(lambda: list(tmp_path.glob("gate.*.started")), 60, shop.said)
    machine = Attempt.objects.get(run=result.id).machine
    # Printing comes after the mark, and a log is behind who writes to it.
    until(lambda: "said by the task" in said(shop, "logs", machine.name), 60, shop.said)
    process = shop.command("mq_machines", "logs", machine.name, "--follow")
    until(lambda: "said by the task" in process.said, 60, lambda: process.said)
    gate.touch()
    assert process.popen.wait(60) == 0
    assert process.said.count("said by the task") == 1


def test_a_busy_machine_is_destroyed_only_by_force_and_its_run_goes_back(shop: World, busy: Any) -> None:
    result, machine = busy
    refused = said(shop, "destroy", machine.name, code=1)
    assert f"is busy. Run {result.id} (tests.workshop.tasks.wait_for) goes back to the queue." in refused
    assert "--force" in refused
    assert "is destroyed" in said(shop, "destroy", machine.name, "--force")
    until(lambda: TaskRun.objects.get(pk=result.id).lost_attempts == 1, 60, shop.said)
    until(lambda: Attempt.objects.filter(run=result.id).count() == 2, 60, shop.said)


def test_a_machine_that_is_stopped_gives_its_run_back(shop: World, busy: Any) -> None:
    result, machine = busy
    assert f"Run {result.id} (tests.workshop.tasks.wait_for) goes back" in said(shop, "stop", machine.fly_id)
    until(lambda: Attempt.objects.filter(run=result.id).count() == 2, 60, shop.said)
    until(lambda: state(shop, machine.fly_id) == "destroyed", 60, shop.said)
    assert f"{machine.name} is destroyed." in said(shop, "start", machine.fly_id, code=1)


def test_a_machine_of_somebody_else_is_touched_only_by_who_knows(shop: World, foreign: schema.Machine) -> None:
    for action in ("start", "stop", "destroy"):
        refused = said(shop, action, "web-1", code=1)
        assert "web-1 is not one of ours (no mq_site" in refused
        assert "--yes-not-ours" in refused
    assert state(shop, foreign.id) == "started"
    assert "is asked to stop" in said(shop, "stop", "web-1", "--yes-not-ours")
    until(lambda: state(shop, foreign.id) == "stopped", 60)
    assert "starts" in said(shop, "start", foreign.id, "--yes-not-ours")
    until(lambda: state(shop, foreign.id) == "started", 60)


def test_what_cannot_be_asked_is_said_in_a_sentence(shop: World, foreign: schema.Machine) -> None:
    assert "There is no machine 'web-2'. Did you mean 'web-1'?" in said(shop, "show", "web-2", code=1)
    refused = said(shop, code=1, FLY_API_TOKEN="FlyV1 wrong-4471")
    assert "Check FLY_API_TOKEN" in refused
    assert "wrong-4471" not in refused
    assert "Not set: FLY_APP_NAME" in said(shop, code=1, FLY_APP_NAME="")


def test_prices() -> None:
    month = 30 * 24 * 3600
    assert prices.per_second(Guest("shared", 1, 256), "iad") * month == pytest.approx(2.19, abs=0.01)
    assert prices.per_second(Guest("performance", 1, 2048), "iad") * month == pytest.approx(33.0, abs=0.1)
    assert prices.per_second(Guest("shared", 1, 512), "gru") > prices.per_second(Guest("shared", 1, 512), "iad")
    assert prices.per_second(Guest(), "mars") is None
