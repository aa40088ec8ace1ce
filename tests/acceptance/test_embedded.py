"""The embedded default: SQLite, wake-ups in a SQLite file, the local Machines API; no service runs."""

import json
from pathlib import Path

import pytest

from tests.waiting import until
from tests.world import Process, World


def finished(process: Process, seconds: float = 60) -> str:
    """What a command said that ends by itself, with 0."""
    until(lambda: process.popen.poll() is not None, seconds, lambda: process.said)
    assert process.popen.returncode == 0, process.said
    return process.said


@pytest.mark.slow
def test_the_journey_without_any_service(tmp_path: Path) -> None:
    world = World(tmp_path, redis_url="", url=f"sqlite://{tmp_path}/workshop.sqlite3")
    with world.emulator:
        finished(world.command("migrate", "--verbosity", "0"))
        dispatcher = world.dispatcher()
        added, where, failed, report = json.loads(finished(world.command("walk")).splitlines()[-1])
        assert (added["status"], added["value"], added["errors"]) == ("SUCCESSFUL", 5, [])
        assert where["value"]["pid"] == where["history"][0]["pid"]
        assert (failed["status"], failed["errors"]) == ("FAILED", ["builtins.ValueError"])
        assert "about to fail" in failed["output"]
        assert report["history"][0]["machine"] != added["history"][0]["machine"], "another size is another machine"
        until(lambda: all(each.state == "destroyed" for each in world.emulator.machines()), 60)
        assert all(each.exit_event and each.exit_event.exit_code == 0 for each in world.emulator.machines())
        assert dispatcher.end() == 0
        assert "Traceback" not in dispatcher.said
        assert (world.state_dir / "wakeups.sqlite3").exists()
        assert world.machine_processes() == []
