from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.schema import CreateRequest, Machine

IMAGE = "registry.fly.io/shop:v1"
_numbers = itertools.count(1)


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """The first true value of `condition`, asked often until a deadline."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        pause.wait(0.01)
    raise AssertionError(f"not within {seconds} s: {condition}")


def python(code: str, **config: Any) -> dict[str, Any]:
    """A config that runs a few lines of Python once."""
    usual = {"image": IMAGE, "init": {"cmd": ["python", "-c", code]}, "restart": {"policy": "no"}}
    return {**usual, **config}


class PendingWait:
    """A wait that the emulator is known to hold when this returns."""

    def __init__(self, emulator: Emulator, machine_id: str, state: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", int(emulator.url.rpartition(":")[2])), timeout=20)
        path = f"/v1/apps/{emulator.app}/machines/{machine_id}/wait?state={state}"
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {emulator.token}\r\nConnection: close\r\n\r\n"
        self._socket.sendall(head.encode())
        # What came before these two exchanges has been taken up by the one event loop.
        with emulator.client() as client:
            client.app()
            client.app()

    def answer(self) -> str:
        """The whole answer."""
        with self._socket, self._socket.makefile("r", encoding="utf-8", newline="") as file:
            return file.read()


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("image")


@pytest.fixture(scope="session")
def emulator(image_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Emulator(
        app="shop",
        images={IMAGE: image_dir},
        secrets={"DATABASE_URL": "postgres://secret-of-the-app", "OTHER_KEY": "other-secret"},
        state_dir=tmp_path_factory.mktemp("emulator"),
        env={"PATH": "/usr/bin:/bin", "LEAKED_FROM_EMULATOR": "leaked"},
    ) as running:
        yield running


@pytest.fixture
def client(emulator: Emulator) -> Iterator[MachinesClient]:
    with emulator.client() as opened:
        yield opened


Create = Callable[..., Machine]


@pytest.fixture
def create(client: MachinesClient) -> Iterator[Create]:
    """Create a machine of a config; it is destroyed after the test."""
    made: list[Machine] = []

    def make(config: dict[str, Any], **fields: Any) -> Machine:
        name = fields.pop("name", f"test-{next(_numbers)}")
        made.append(client.create(CreateRequest(name, fields.pop("region", None), config, **fields)))
        return made[-1]

    yield make
    for machine in made:
        client.destroy(machine.id, force=True)
