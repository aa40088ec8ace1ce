"""What may befall a machine: a host that is lost and comes back, a migration, a shortage of memory, a slow boot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from machinequeue.machines.emulator import Emulator
from machinequeue.machines.emulator.delays import Delays
from machinequeue.machines.emulator.options import parse
from tests.machines.conftest import IMAGE, python, raw_client, until

MACHINES = "/v1/apps/shop/machines"

FOREVER = "import os, signal; print('up', os.environ['FLY_PRIVATE_IP'], flush=True); signal.pause()"
GRACEFUL = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    "print('up', os.environ['FLY_PRIVATE_IP'], flush=True)\n"
    "signal.pause()"
)
STOP = {"signal": "SIGTERM", "timeout": "30s"}


def command_lines(emulator: Emulator) -> list[list[str]]:
    """What runs below the emulator."""
    found = []
    for process in psutil.Process(emulator.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found.append(process.cmdline())
    return found


class Fate:
    """One emulator, its raw HTTP, and the machines that a test made."""

    def __init__(self, emulator: Emulator, http: httpx.Client) -> None:
        self.emulator = emulator
        self.http = http

    def create(self, code: str, *, skip_launch: bool = False, **config: Any) -> str:
        body = {"config": python(code, **config), "skip_launch": skip_launch}
        return str(self.answer("POST", MACHINES, json=body)["id"])

    def up(self, code: str, **config: Any) -> str:
        machine = self.create(code, **config)
        self.wait_until_up(machine, 1)
        return machine

    def wait_until_up(self, machine: str, times: int) -> None:
        self.wait(machine, "started")
        until(lambda: self.emulator.output(machine).count("up ") == times)

    def befall(self, machine: str, what: str, status: int = 201) -> None:
        kind = {"run_out_of_memory": "out_of_memory"}.get(what, what)
        answer = self.http.post("/_emulator/faults", json={"kind": kind, "machine": machine})
        assert answer.status_code == status, answer.text

    def get(self, machine: str) -> dict[str, Any]:
        return self.answer("GET", f"{MACHINES}/{machine}")

    def wait(self, machine: str, state: str) -> None:
        self.answer("GET", f"{MACHINES}/{machine}/wait", params={"state": state, "timeout": 30})

    def events(self, machine: str) -> list[str]:
        """type/status/source, oldest first."""
        return [f"{each['type']}/{each['status']}/{each['source']}" for each in self.get(machine)["events"][::-1]]

    def exit_event(self, machine: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in self.get(machine)["events"] if each["type"] == "exit")
        return dict(found["request"]["exit_event"])

    def boot_ms(self, machine: str) -> int:
        """From the first event to the newest, which is a start."""
        events = self.get(machine)["events"]
        assert events[0]["type"] == "start"
        return int(events[0]["timestamp"] - events[-1]["timestamp"])

    def pid(self, machine: str) -> int:
        lines = [line for line in self.emulator.journal() if line.get("machine") == machine]
        return int([line["pid"] for line in lines if "pid" in line][-1])

    def answer(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        answer = self.http.request(method, path, **request)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def befallen(image_dir: Path) -> Iterator[Emulator]:
    with Emulator(app="shop", images={IMAGE: image_dir}) as emulator:
        yield emulator


@pytest.fixture
def fate(befallen: Emulator) -> Iterator[Fate]:
    with raw_client(befallen) as http:
        yield Fate(befallen, http)


def test_a_lost_host_takes_the_processes_and_tells_nobody(fate: Fate) -> None:
    machine = fate.up(FOREVER, metadata={"mq": "7"})
    process = psutil.Process(fate.pid(machine))
    fate.befall(machine, "vanish")
    assert not psutil.wait_procs([process], timeout=60)[1]
    found = fate.get(machine)
    assert (found["state"], found["host_status"], found["config"]) == ("started", "unreachable", None)
    assert set(found["incomplete_config"]) <= {"metadata", "image", "guest"}, "it is unfit for making another of it"
    assert found["incomplete_config"]["metadata"] == {"mq": "7"}
    assert fate.events(machine) == ["launch/created/user", "start/started/flyd"]
    listed = fate.http.get(MACHINES, params={"metadata.mq": "7"}).json()
    assert [(each["id"], each["host_status"], each["config"]) for each in listed] == [(machine, "unreachable", None)]


def test_nothing_can_be_done_on_a_lost_host(fate: Fate) -> None:
    machine = fate.up(FOREVER)
    fate.befall(machine, "vanish")
    bodies = {"/signal": {"signal": "SIGTERM"}, "/exec": {"command": ["true"]}, "": {"config": python("pass")}}
    for deed in ("/start", "/stop", "/restart", "/signal", "/exec", "/cordon", ""):
        answer = fate.http.post(f"{MACHINES}/{machine}{deed}", json=bodies.get(deed, {}))
        assert answer.status_code == 412
        assert "host is unreachable" in answer.json()["error"]


def test_a_command_on_a_host_that_is_lost_has_no_outcome(fate: Fate) -> None:
    machine = fate.up(FOREVER)
    with ThreadPoolExecutor(1) as aside:
        answer = aside.submit(fate.http.post, f"{MACHINES}/{machine}/exec", json={"command": ["sleep", "4711"]})
        until(lambda: any("4711" in line for line in command_lines(fate.emulator)))
        fate.befall(machine, "vanish")
        assert answer.result(60).status_code == 412


def test_a_machine_on_a_lost_host_can_be_destroyed_by_force(fate: Fate) -> None:
    machine = fate.up(FOREVER)
    fate.befall(machine, "vanish")
    assert fate.http.delete(f"{MACHINES}/{machine}").status_code == 412
    assert fate.http.delete(f"{MACHINES}/{machine}", params={"force": "true"}).status_code == 200
    assert fate.get(machine)["state"] == "destroyed"
    fate.befall(machine, "vanish", 404)


@pytest.mark.parametrize(("auto_destroy", "state"), [(False, "stopped"), (True, "destroyed")])
def test_a_host_that_comes_back_finds_the_machine_ended(fate: Fate, auto_destroy: bool, state: str) -> None:
    machine = fate.up(FOREVER, auto_destroy=auto_destroy)
    fate.befall(machine, "return_host", 412)
    fate.befall(machine, "vanish")
    fate.befall(machine, "return_host")
    fate.wait(machine, state)
    found = fate.get(machine)
    assert (found["host_status"], found["config"]["image"]) == ("ok", IMAGE)
    event = fate.exit_event(machine)
    assert (event["exit_code"], event["requested_stop"], event["oom_killed"]) == (137, False, False)
    if state == "stopped":
        fate.answer("POST", f"{MACHINES}/{machine}/start")
        fate.wait_until_up(machine, 2)


@pytest.mark.parametrize("auto_destroy", [False, True])
def test_a_migrated_machine_runs_again_elsewhere(fate: Fate, auto_destroy: bool) -> None:
    machine = fate.up(GRACEFUL, stop_config=STOP, auto_destroy=auto_destroy)
    before = fate.get(machine)
    fate.befall(machine, "migrate")
    fate.wait_until_up(machine, 2)
    after = fate.get(machine)
    assert after["state"] == "started"
    assert after["instance_id"] == before["instance_id"]
    assert after["private_ip"] != before["private_ip"]
    assert f"up {after['private_ip']}" in fate.emulator.output(machine)
    boot = ["launch/created/flyd", "start/started/flyd"]
    assert fate.events(machine) == ["launch/created/user", "start/started/flyd", "exit/stopped/flyd", *boot]
    event = fate.exit_event(machine)
    assert (event["exit_code"], event["requested_stop"]) == (0, True)


def test_a_stop_ends_a_migration(fate: Fate) -> None:
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
    machine = fate.up(stubborn, stop_config={"signal": "SIGTERM", "timeout": "60s"})
    fate.befall(machine, "migrate")
    fate.answer("POST", f"{MACHINES}/{machine}/stop", json={"signal": "SIGKILL"})
    fate.wait(machine, "stopped")
    assert "launch/created/flyd" not in fate.events(machine)


def test_a_machine_at_rest_moves_without_a_start(fate: Fate) -> None:
    machine = fate.create("pass", skip_launch=True)
    fate.wait(machine, "stopped")
    before = fate.get(machine)["private_ip"]
    fate.befall(machine, "migrate")
    found = fate.get(machine)
    assert found["state"] == "stopped"
    assert found["private_ip"] != before


def test_memory_can_run_out(fate: Fate) -> None:
    child = "import signal; block = bytearray(30 << 20); print('up', 'child', flush=True); signal.pause()"
    code = f"import subprocess, sys; print(subprocess.call([sys.executable, '-c', {child!r}])); raise SystemExit(5)"
    machine = fate.up(code)
    fate.befall(machine, "run_out_of_memory")
    fate.wait(machine, "stopped")
    assert "-9\n" in fate.emulator.output(machine)
    assert fate.exit_event(machine)["exit_code"] == 5
    alone = fate.up(FOREVER)
    fate.befall(alone, "run_out_of_memory")
    fate.wait(alone, "stopped")
    event = fate.exit_event(alone)
    assert (event["oom_killed"], event["exit_code"], event["requested_stop"]) == (True, 137, False)
    fate.befall(alone, "run_out_of_memory", 412)


# -- boots that take their time ---------------------------------------------------------------------------------------


def hold(fate: Fate, kind: str, seconds: float, times: int = 1) -> None:
    fate.emulator.faults.add("late_boot", kind, delay=seconds, times=times)


def test_a_machine_stays_created_as_long_as_its_preparation_is_held(fate: Fate) -> None:
    hold(fate, "create", 3600)
    late, next_one = fate.create(FOREVER), fate.create(FOREVER)
    fate.wait(next_one, "started")
    assert fate.get(late)["state"] == "created"
    answer = fate.http.post(f"{MACHINES}/{late}/start")
    assert answer.status_code == 412
    assert answer.json()["error"] == ("failed_precondition: unable to start machine from current state: 'created'")
    assert fate.http.delete(f"{MACHINES}/{late}").status_code == 412
    fate.answer("DELETE", f"{MACHINES}/{late}", params={"force": "true"})
    assert fate.get(late)["state"] == "destroyed"
    assert fate.events(late) == ["launch/created/user", "destroy/destroying/user", "destroy/destroyed/flyd"]


def test_a_destroyed_machine_does_not_boot_when_its_delay_is_over(fate: Fate) -> None:
    hold(fate, "create", 0.6, times=2)
    doomed, other = fate.create(FOREVER), fate.create(FOREVER)
    fate.answer("DELETE", f"{MACHINES}/{doomed}", params={"force": "true"})
    fate.wait(other, "started")  # whose delay ended later
    assert fate.emulator.output(doomed) == ""


def test_a_late_boot_is_a_boot(fate: Fate) -> None:
    hold(fate, "create", 0.2)
    machine = fate.create(FOREVER)
    fate.wait_until_up(machine, 1)
    assert fate.events(machine) == ["launch/created/user", "start/started/flyd"]
    assert fate.boot_ms(machine) >= 200


def test_a_disk_is_prepared_before_a_machine_rests(fate: Fate) -> None:
    hold(fate, "create", 3600)
    unprepared = fate.create(FOREVER, skip_launch=True)
    assert fate.http.post(f"{MACHINES}/{unprepared}/start").status_code == 412
    hold(fate, "create", 0.1)
    machine = fate.create(FOREVER, skip_launch=True)
    fate.wait(machine, "stopped")
    fate.answer("POST", f"{MACHINES}/{machine}/start")
    fate.wait_until_up(machine, 1)


def test_a_slow_start_can_be_stopped(fate: Fate) -> None:
    machine = fate.create(FOREVER, skip_launch=True)
    fate.wait(machine, "stopped")
    hold(fate, "start", 3600)
    fate.answer("POST", f"{MACHINES}/{machine}/start")
    assert fate.get(machine)["state"] == "starting"
    fate.answer("POST", f"{MACHINES}/{machine}/stop", json={})
    assert fate.get(machine)["state"] == "stopped"
    hold(fate, "start", 0.1)
    fate.answer("POST", f"{MACHINES}/{machine}/start")
    fate.wait_until_up(machine, 1)


def test_a_lost_host_boots_nothing_late(fate: Fate) -> None:
    hold(fate, "create", 3600)
    machine = fate.create(FOREVER)
    fate.befall(machine, "vanish")
    assert fate.get(machine)["state"] == "created"
    fate.befall(machine, "return_host")
    assert fate.get(machine)["state"] == "stopped"
    assert fate.events(machine) == ["launch/created/user"]


def test_delays_are_an_option(image_dir: Path) -> None:
    delays = "create=0.2,start=0.1..0.3"
    with Emulator(app="shop", images={IMAGE: image_dir}, boot_delay=delays) as emulator, raw_client(emulator) as http:
        fate = Fate(emulator, http)
        machine = fate.create(FOREVER)
        fate.wait_until_up(machine, 1)
        assert fate.boot_ms(machine) >= 200


def test_delays_are_drawn_as_written() -> None:
    delays = Delays.parse("create=2..5, start=0.5")
    assert {delays.draw("start") for _ in range(5)} == {0.5}
    drawn = [delays.draw("create") for _ in range(200)]
    assert min(drawn) >= 2
    assert max(drawn) <= 5
    assert len(set(drawn)) > 100
    assert Delays().draw("create") == 0.0
    around = Delays.parse("create=~4")
    assert 3 < sorted(around.draw("create") for _ in range(2001))[1000] < 5
    delays.hold("start", 9, times=2)
    assert [delays.draw("start") for _ in range(3)] == [9.0, 9.0, 0.5]


@pytest.mark.parametrize(
    "text", ["", "create", "create=", "boot=1", "create=5..2", "create=-1", "create=nan", "start=~x"]
)
def test_a_delay_that_makes_no_sense_is_refused(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a boot"):
        Delays.parse(text)
    with pytest.raises(SystemExit):
        parse(["--boot-delay", text, "--state-dir", str(tmp_path)])
    assert "a boot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "seconds", "times"), [("sleep", 1, 1), ("start", -1, 1), ("start", float("nan"), 1), ("start", 1, 0)]
)
def test_a_hold_that_makes_no_sense_is_refused(kind: str, seconds: float, times: int) -> None:
    with pytest.raises(ValueError, match="not"):
        Delays().hold(kind, seconds, times)
