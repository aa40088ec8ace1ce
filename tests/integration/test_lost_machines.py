"""Machines that die, that are stopped, and that nobody knows."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from machinequeue.machines.schema import CreateRequest
from machinequeue.models import Machine
from tests.waiting import until
from tests.workshop import tasks
from tests.world import World


def started(gate: Path) -> list[int]:
    """The pids of the task processes that reached the gate."""
    return [int(mark.name.split(".")[-2]) for mark in gate.parent.glob(f"{gate.name}.*.started")]


@pytest.mark.parametrize("how", ["destroyed", "killed"])
def test_a_machine_that_dies_gives_its_run_to_another(shop: World, tmp_path: Path, how: str) -> None:
    gate = tmp_path / "gate"
    result = tasks.wait_for.enqueue(str(gate))
    [pid] = until(lambda: started(gate), 60, shop.said)
    result.refresh()
    [first] = result.worker_ids
    with shop.emulator.client() as client:
        client.destroy(first, force=True) if how == "destroyed" else client.signal(first, "SIGKILL")
    until(lambda: not psutil.pid_exists(pid), 60)
    gate.touch()
    shop.finish(result)
    assert result.return_value == "the gate is open"
    assert [each["status"] for each in result.history] == ["lost", "succeeded"]
    assert result.worker_ids[0] == first != result.worker_ids[1]
    lost = Machine.objects.get(fly_id=first)
    assert lost.status == "gone"
    assert lost.exit_event is not None
    assert lost.exit_event["exit_code"] == 137
    assert result.errors[0].exception_class_path == "machinequeue.errors.RunLost"


def test_a_machine_that_is_stopped_releases_its_run(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = tasks.wait_for.enqueue(str(gate))
    until(lambda: started(gate), 60, shop.said)
    result.refresh()
    with shop.emulator.client() as client:
        client.stop(result.worker_ids[0])
    until(lambda: len(started(gate)) == 2, 60, shop.said)
    gate.touch()
    shop.finish(result)
    assert [each["status"] for each in result.history] == ["interrupted", "succeeded"]
    stopped = Machine.objects.get(fly_id=result.worker_ids[0])
    until(lambda: Machine.objects.get(pk=stopped.pk).status == "gone", 60, shop.said)
    stopped.refresh_from_db()
    assert (stopped.exit_event or {})["exit_code"] == 0, shop.emulator.output(stopped.fly_id)
    assert stopped.reason == "asked to stop"


def test_a_machine_without_a_row_that_names_us_is_destroyed_and_a_stranger_is_not(shop: World) -> None:
    result = tasks.add.enqueue(1)
    shop.finish(result)
    with shop.emulator.client() as client:
        [site] = {each.metadata["mq_site"] for each in shop.emulator.machines() if "mq_site" in each.metadata}
        leaked = _sleeper(client, "mq-leaked", {"mq_machine": "mq-leaked", "mq_site": site})
        other = _sleeper(client, "web-1", {"fly_process_group": "app"})
        other_site = _sleeper(client, "mq-other", {"mq_machine": "mq-other", "mq_site": "another-site"})
        keep = tasks.add.enqueue(1)
        until(lambda: client.get(leaked).state == "destroyed", 60, shop.said)
        shop.finish(keep)
        for each in (other, other_site):
            assert client.get(each).state == "started"
            client.destroy(each, force=True)


def _sleeper(client: Any, name: str, metadata: dict[str, str]) -> str:
    config = {"image": "local", "init": {"cmd": ["sleep", "600"]}, "metadata": metadata}
    machine = client.create(CreateRequest(name=name, region="iad", config=config))
    client.wait(machine.id, "started", timeout=10)
    return str(machine.id)
