from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.emulator.remote_faults import FaultError, Faults
from machinequeue.machines.schema import CreateRequest, Machine
from tests.machines.conformance import Exchange

IMAGE = "registry.fly.io/shop:v1"
_numbers = itertools.count(1)


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
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


def misbehaves(request: httpx.Request) -> bool:
    """Whether the emulator that was asked has a fault that acted, which is why it may answer as it likes."""
    token = request.headers.get("authorization", "").partition(" ")[2]
    address = f"http://{request.url.netloc.decode()}"
    try:
        return any(fault.fired for fault in Faults(address, token).list())
    except (FaultError, OSError):
        return False


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


@pytest.fixture(autouse=True)
def _keeps_to_the_specification(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test when an answer that came over a network deviates from the specification without being listed."""
    problems: list[str] = []
    send = httpx.HTTPTransport.handle_request

    def send_and_look(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        response = send(self, request)
        path = request.url.raw_path.decode("ascii")
        # What others answer may be a stream.
        if path.startswith("/v1/") and "fly-request-id" in response.headers:
            response.read()
            media = response.headers.get("content-type", "").partition(";")[0]
            problem = Exchange(request.method, path, response.status_code, media, response.content).problem()
            if problem and not misbehaves(request):
                problems.append(problem)
        return response

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", send_and_look)
    yield
    assert not problems, "\n".join(problems)


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
def faults(emulator: Emulator) -> Iterator[Faults]:
    yield emulator.faults
    emulator.faults.clear()


@pytest.fixture
def patient(emulator: Emulator) -> Iterator[MachinesClient]:
    """The client as a dispatcher has it, but between two tries it pauses for no time."""
    with emulator.client(pause=lambda seconds: None) as opened:
        yield opened


@pytest.fixture
def client(emulator: Emulator) -> Iterator[MachinesClient]:
    with emulator.client(read_tries=1) as opened:  # one call is one request
        yield opened


def raw_client(emulator: Emulator) -> httpx.Client:
    """HTTP without any of the client's kindness."""
    headers = {"Authorization": f"Bearer {emulator.token}"}
    return httpx.Client(base_url=emulator.url, headers=headers, trust_env=False, timeout=30)


@pytest.fixture
def http(emulator: Emulator) -> Iterator[httpx.Client]:
    with raw_client(emulator) as opened:
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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What live runs against Fly saw, which no document says; with -v what the emulator answers instead, too."""
    wanted = ("fly ", "emulator ") if terminalreporter.config.option.verbose > 0 else ("fly ",)
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    lines = {
        f"{what}: {seen}"
        for report in reports
        for what, seen in getattr(report, "user_properties", ())
        if what.startswith(wanted)
    }
    if lines:
        terminalreporter.section("what was seen")
        for line in sorted(lines):
            terminalreporter.write_line(line)
