"""Machines of images that are not ours: what the walls let through, and that without walls there is no machine.

What hostile code comes up against is in tests/containers/test_hostile.py.
"""

from __future__ import annotations

import base64
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator, sandbox
from machinequeue.machines.errors import ImageNotFound, Rejected, TooLarge
from machinequeue.machines.schema import CreateRequest, Machine
from tests.waiting import until

NEEDS_WALLS = pytest.mark.skipif(
    bool(sandbox.problem(sys.base_prefix)), reason=f"no sandbox can be made here: {sandbox.problem(sys.base_prefix)}"
)
FILTERED = """
import runpy, sys
from machinequeue.machines.emulator import walls
walls._prctl(walls.PR_SET_NO_NEW_PRIVS, 1)
walls._filter_calls()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class WithoutNamespaces(Emulator):
    """An emulator whom the kernel refuses new namespaces, as some computers do everybody."""

    def _command(self) -> list[str]:
        python, _, module, *words = super()._command()
        return [python, "-c", FILTERED, module, *words]


def create(client: MachinesClient, image: str = "python:3.13-slim", **config: Any) -> Machine:
    usual = {"init": {"exec": ["sleep", "600"]}, "guest": {"memory_mb": 256}, "restart": {"policy": "no"}}
    return client.create(CreateRequest(name="", region=None, config={"image": image, **usual, **config}))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Emulator, MachinesClient]]:
    secret = {"API_KEY": "a secret of the app"}
    with Emulator(state_dir=tmp_path / "state", secrets=secret) as emulator, emulator.client() as client:
        yield emulator, client


Started = tuple[Emulator, MachinesClient]


def below(emulator: Emulator) -> list[psutil.Process]:
    return [each for each in psutil.Process(emulator.pid).children(recursive=True) if each.status() != "zombie"]


@NEEDS_WALLS
def test_files_of_the_config_are_inside(started: Started, tmp_path: Path) -> None:
    _, client = started
    mark = secrets.token_hex(8)
    content = base64.b64encode(mark.encode()).decode()
    paths = [f"/data/{mark}", f"/tmp/../../../../{mark}", f"{tmp_path}/{mark}", f"/proc/self/cwd/../{mark}.cwd"]
    made = create(client, files=[{"guest_path": path, "raw_value": content} for path in paths])
    client.wait(made.id, "started")
    for path in (f"/data/{mark}", f"/{mark}", f"{tmp_path}/{mark}"):
        assert client.exec(made.id, ["cat", path]).stdout == mark
        assert not Path(path).exists()


@NEEDS_WALLS
def test_there_is_no_network_inside(started: Started) -> None:
    emulator, client = started
    made = create(client)
    client.wait(made.id, "started")
    listed = client.exec(made.id, ["cat", "/proc/net/dev"]).stdout.splitlines()[2:]
    assert {line.partition(":")[0].strip() for line in listed} <= {"lo"}
    port = emulator.url.rpartition(":")[2]
    code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=30)"
    asked = client.exec(made.id, ["python", "-c", code], timeout=60)
    assert asked.exit_code == 1
    assert "Error" in asked.stderr


@NEEDS_WALLS
def test_nothing_of_the_computers_environment_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secrets of its own app are there, as on Fly: machines for code that is not ours are in an app without any."""
    monkeypatch.setenv("OF_THE_COMPUTER", "a secret of the computer")
    with Emulator(state_dir=tmp_path / "state") as emulator, emulator.client() as client:
        assert psutil.Process(emulator.pid).environ()["OF_THE_COMPUTER"] == "a secret of the computer"
        made = create(client)
        client.wait(made.id, "started")
        assert "a secret of the computer" not in client.exec(made.id, ["env"]).stdout


@NEEDS_WALLS
def test_a_file_that_cannot_be_placed_ends_the_machine(started: Started) -> None:
    emulator, client = started
    made = create(client, files=[{"guest_path": "/usr/bin/mine", "raw_value": ""}])
    client.wait(made.id, "stopped")
    assert "could not place a file" in emulator.output(made.id)
    assert not Path("/usr/bin/mine").exists()


@NEEDS_WALLS
def test_who_guards_the_walls_has_nothing_to_give_away(started: Started) -> None:
    emulator, client = started
    made = create(client, env={"OF_THE_MACHINE": "x"})
    client.wait(made.id, "started")
    guards = [each for each in below(emulator) if "sandbox.py" in " ".join(each.cmdline())]
    assert len(guards) == 3
    assert all(each.environ() == {} for each in guards)
    assert "OF_THE_MACHINE=x" in client.exec(made.id, ["env"]).stdout


@NEEDS_WALLS
def test_everybody_dies_with_the_emulator(started: Started) -> None:
    emulator, client = started
    mark = f"{secrets.randbelow(10**6)}.{secrets.randbelow(10**6)}"
    made = create(client)
    client.wait(made.id, "started")
    client.exec(made.id, ["sh", "-c", f"setsid sleep {mark} >/dev/null 2>&1 & echo"])
    everybody = below(emulator)
    assert [each for each in everybody if mark in " ".join(each.cmdline())]
    emulator.kill()
    until(lambda: not [each for each in everybody if each.is_running() and each.status() != "zombie"], 60)


@NEEDS_WALLS
def test_a_guard_that_is_killed_ends_the_machine(started: Started) -> None:
    emulator, client = started
    made = create(client)
    client.wait(made.id, "started")
    everybody = [each for each in below(emulator) if "sandbox.py" in " ".join(each.cmdline())]
    everybody[1].kill()
    assert client.wait(made.id, "stopped", timeout=30) == "stopped"
    until(lambda: not [each for each in everybody if each.is_running() and each.status() != "zombie"], 60)


@NEEDS_WALLS
def test_signals_and_a_stop_reach_the_command(started: Started) -> None:
    _, client = started
    made = create(client, init={"exec": ["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"]})
    client.wait(made.id, "started")
    client.stop(made.id, "SIGTERM", "10s")
    client.wait(made.id, "stopped")
    event = until(lambda: client.get(made.id).exit_event)
    assert event is not None
    assert event.exit_code in (7, 143)  # the signal may come before the trap


def test_without_walls_there_is_no_machine(tmp_path: Path) -> None:
    with WithoutNamespaces(state_dir=tmp_path / "state") as emulator, emulator.client() as client:
        with pytest.raises(Rejected, match="none can be made on this computer") as refused:
            create(client)
        assert "Allow unprivileged user namespaces" in refused.value.message
        assert client.list() == []
        # Ours needs no walls.
        ours = create(client, image="app:latest", init={"exec": [sys.executable, "-c", "print('ours')"]})
        client.wait(ours.id, "stopped")
        assert "ours" in emulator.output(ours.id)


def test_other_images_are_not_known(started: Started) -> None:
    with pytest.raises(ImageNotFound):
        create(started[1], image="alpine:3")


def test_an_answer_that_is_too_large_is_not_read(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = started
    monkeypatch.setattr("machinequeue.machines.client.LARGEST_ANSWER", 10_000)
    made = create(client, image="app:latest")
    client.wait(made.id, "started")
    with pytest.raises(TooLarge, match="more than 10000 bytes"):
        client.exec(made.id, ["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x"])
    assert client.exec(made.id, ["echo", "still there"]).stdout == "still there\n"
