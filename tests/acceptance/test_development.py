"""`mq_dev`: site, dispatcher and emulator together, as slow as asked."""

import json
import urllib.request
from pathlib import Path

import psutil

from tests.ports import free_port
from tests.waiting import until
from tests.world import World


def test_one_command_runs_everything(tmp_path: Path) -> None:
    world = World(tmp_path, redis_url="", url=f"sqlite://{tmp_path}/workshop.sqlite3")
    site, api = free_port(), f"http://127.0.0.1:{free_port()}"
    migrated = world.command("migrate", "--verbosity", "0")
    until(lambda: migrated.popen.poll() is not None, 60, lambda: migrated.said)
    slowness = ("--rate-limits", "--boot-delay", "create=0.4,start=0.1")
    dev = world.command("mq_dev", f"127.0.0.1:{site}", "--noreload", *slowness, FLY_API_HOSTNAME=api)
    try:
        until(lambda: "emulator ready" in dev.said and "Dispatcher" in dev.said, 60, lambda: dev.said)
        family = psutil.Process(dev.popen.pid).children(recursive=True)
        assert len(family) >= 3

        walk = world.command("walk", FLY_API_HOSTNAME=api)
        until(lambda: walk.popen.poll() is not None, 60, lambda: walk.said + dev.said)
        assert json.loads(walk.said.splitlines()[-1])[0]["value"] == 5
        urllib.request.urlopen(f"http://127.0.0.1:{site}/admin/login/", timeout=10).close()
        lines = (world.state_dir / "emulator" / "emulator.jsonl").read_text(encoding="utf-8").splitlines()
        events = [line for line in map(json.loads, lines) if line["kind"] == "event"]
        launched, started = (
            {each["machine"]: each["at"] for each in events if each["type"] == kind} for kind in ("launch", "start")
        )
        assert started
        assert all(at - launched[machine] >= 0.4 for machine, at in started.items())
    finally:
        status = dev.end()
    assert status == 0, dev.said
    assert not psutil.wait_procs(family, timeout=60)[1]


def test_a_delay_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    world = World(tmp_path, redis_url="", url=f"sqlite://{tmp_path}/workshop.sqlite3")
    emulator = world.command("mq_emulator", "--port", "0", "--boot-delay", "soon")
    until(lambda: emulator.popen.poll() is not None, 60, lambda: emulator.said)
    assert emulator.popen.returncode == 2
    assert "'soon'" in emulator.said
    assert "Traceback" not in emulator.said
