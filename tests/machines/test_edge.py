"""The edge in front of real machines that run a real server."""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.proxy import Edge
from machinequeue.machines.schema import CreateRequest, Machine
from tests.machines.conftest import until

IMAGE = "registry.fly.io/shop:v1"
MB = 1_000_000
_numbers = itertools.count(1)


class World:
    """An emulator and an edge of one app, with as many machines as a test asks for."""

    def __init__(self, emulator: Emulator, edge: Edge, client: MachinesClient) -> None:
        self.emulator = emulator
        self.edge = edge
        self.client = client
        self.http = httpx.Client(base_url=edge.url, timeout=30)
        self.made: list[str] = []

    def machine(self, name: str = "", region: str = "iad", up: bool = True, **options: Any) -> Machine:
        """A machine whose server listens, or, with up=False, one that rests."""
        env = options.pop("env", {})
        services = options.pop("services", None)
        usual = {"internal_port": 8000, "protocol": "tcp", "ports": [{"port": 80, "handlers": ["http"]}]}
        config = {
            "image": IMAGE,
            "init": {"cmd": ["python", "app.py"]},
            "restart": {"policy": "no"},
            "stop_config": {"signal": "SIGTERM", "timeout": "5s"},
            "services": [{**usual, **options}] if services is None else services,
            "env": env,
        }
        name = name or f"edge-{next(_numbers)}"
        made = self.client.create(CreateRequest(name, region, config, skip_launch=not up))
        self.made.append(made.id)
        if up:
            until(lambda: "up\n" in self.emulator.output(made.id))
        self.client.wait(made.id, "started" if up else "stopped")
        # What the edge knows may be half a second old; tests want it to know this machine.
        return self.client.get(made.id)

    def who(self, path: str = "/who", **options: Any) -> dict[str, Any]:
        """What the app saw of a request that succeeded."""
        answer = self.http.request(options.pop("method", "GET"), path, **options)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert isinstance(told, dict)
        return told

    def state(self, machine: Machine) -> str:
        return self.client.get(machine.id).state

    def give(self, machine: Machine, sign: str) -> None:
        """Give a sign in that machine, past the edge."""
        assert httpx.get(f"http://{machine.private_ip}:8000/give?sign={sign}").text == "given"

    def given(self, machine: Machine, sign: str) -> bool:
        return httpx.get(f"http://{machine.private_ip}:8000/given?sign={sign}").text == "yes"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for machine_id in self.made:
            self.client.destroy(machine_id, force=True)
        self.http.close()


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    image = tmp_path_factory.mktemp("edge-image")
    shutil.copy(Path(__file__).with_name("edge_app.py"), image / "app.py")
    with Emulator(app="shop", images={IMAGE: image}, state_dir=tmp_path_factory.mktemp("edge-emulator")) as running:
        yield running


@pytest.fixture(scope="module")
def edge(emulator: Emulator) -> Iterator[Edge]:
    with Edge(api=emulator.url, token=emulator.token, app="shop", cache_seconds=0.001, patience_seconds=15) as running:
        yield running
        assert (running.state_dir / "edge.stderr").read_text() == ""
        assert emulator.token not in running.log_path.read_text()


@pytest.fixture
def world(emulator: Emulator, edge: Edge) -> Iterator[World]:
    with emulator.client() as client, World(emulator, edge, client) as made:
        yield made


def replay(order: str, **more: str) -> dict[str, str]:
    return {"fly-replay": order, **more}


# -- plain requests


def test_a_request_reaches_a_machine_with_what_the_edge_knows(world: World) -> None:
    machine = world.machine()
    told = world.who("/a%20b//c?x=1&y=%2F", headers={"host": "shop.localhost:8080", "x-own": "1"})
    assert (told["machine"], told["path"]) == (machine.id, "/a%20b//c?x=1&y=%2F")
    port = world.edge.url.rpartition(":")[2]
    expected = {
        "host": "shop.localhost:8080",
        "x-own": "1",
        "fly-client-ip": "127.0.0.1",
        "fly-forwarded-port": port,
        "fly-region": "iad",
        "x-forwarded-for": "127.0.0.1, 127.0.0.1",
        "x-forwarded-proto": "http",
        "x-forwarded-port": port,
        "x-forwarded-ssl": "off",
        "via": "1.1 fly.io",
    }
    assert expected.items() <= told["headers"].items()
    answer = world.http.get("/who")
    assert answer.headers["fly-request-id"] == answer.json()["headers"]["fly-request-id"]
    assert answer.headers["via"] == "1.1 fly.io"
    assert answer.headers["server-timing"] == "db"
    assert answer.headers.get_list("server") == ["Fly/local"]


def test_a_client_cannot_forge_what_the_edge_says(world: World) -> None:
    world.machine()
    forged = {"fly-client-ip": "6.6.6.6", "fly-replay-src": "instance=x", "fly-replay-failed": "x", "fly-region": "xxx"}
    told = world.who(headers={**forged, "x-forwarded-proto": "https", "connection": "keep-alive, x-forwarded-for"})
    assert told["headers"]["fly-client-ip"] == "127.0.0.1"
    assert told["headers"]["fly-region"] == "iad"
    assert told["headers"]["x-forwarded-proto"] == "http"
    assert told["headers"]["x-forwarded-for"] == "127.0.0.1, 127.0.0.1"
    assert not {"fly-replay-src", "fly-replay-failed"} & set(told["headers"])


def test_methods_and_bodies_pass(world: World) -> None:
    world.machine()
    body = os.urandom(300_000)
    told = world.who(method="PUT", content=body)
    assert (told["method"], told["digest"]) == ("PUT", hashlib.sha256(body).hexdigest())
    told = world.who(method="POST", content=iter([b"one", b"two"]))
    assert (told["size"], told["headers"]["transfer-encoding"]) == (6, "chunked")
    head = world.http.head("/who")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0


def test_connections_to_a_machine_are_kept(world: World) -> None:
    world.machine()
    assert len({world.who()["client_port"] for _ in range(5)}) == 1
    replayed = {world.who(params=replay("state=again"))["client_port"] for _ in range(5)}
    assert replayed == {world.who()["client_port"]}


def test_only_machines_of_the_app_with_services_are_asked(world: World) -> None:
    world.machine(services=[])
    answer = world.http.get("/who")
    assert (answer.status_code, answer.text) == (503, "edge: no machine of app shop can take this request\n")
    assert answer.headers["fly-request-id"].endswith("-iad")
    assert answer.headers["content-type"].startswith("text/plain")
    unknown = world.http.get("/who", headers={"host": "no-such-app.localhost"})
    assert (unknown.status_code, unknown.text) == (404, "edge: there is no app no-such-app\n")


def test_the_host_picks_the_app(world: World) -> None:
    ours = world.machine()
    with httpx.Client(base_url=world.emulator.url, headers={"authorization": f"Bearer {world.emulator.token}"}) as api:
        api.post("/v1/apps", json={"app_name": "admin", "name": "admin", "org_slug": "personal"})
    client = MachinesClient("admin", token=world.emulator.token, base_url=world.emulator.url)
    with client, World(world.emulator, world.edge, client) as admin:
        theirs = admin.machine("theirs")
        assert world.who(headers={"host": "admin.localhost:8080"})["machine"] == theirs.id
        assert world.who(headers={"host": "shop.fly.dev"})["machine"] == ours.id
        told = world.who(params=replay("app=admin"))
        assert (told["machine"], told["headers"]["fly-replay-src"].split(";")[0]) == (theirs.id, f"instance={ours.id}")


def test_a_machine_that_was_destroyed_is_asked_no_more(emulator: Emulator) -> None:
    # With a list of machines that is a minute old, only the refused connection can tell.
    with (
        Edge(api=emulator.url, token=emulator.token, app="shop", cache_seconds=60, patience_seconds=5) as edge,
        emulator.client() as client,
        World(emulator, edge, client) as world,
    ):
        first, second = world.machine(), world.machine()
        assert {world.who()["machine"] for _ in range(30)} == {first.id, second.id}
        client.destroy(first.id, force=True)
        client.wait(first.id, "destroyed")
        assert {world.who(method="POST", content=b"x")["machine"] for _ in range(10)} == {second.id}
        client.destroy(second.id, force=True)
        client.wait(second.id, "destroyed")
        assert world.http.get("/who").status_code == 503


def test_a_machine_that_vanishes_in_the_middle_is_a_502_for_what_may_not_be_done_twice(world: World) -> None:
    first, second = world.machine(), world.machine()
    answer = world.http.post("/vanish", content=b"x")
    assert answer.status_code == 502
    assert answer.text.startswith("edge: machine ")
    left = next(each for each in (first, second) if each.id not in answer.text)
    assert world.who()["machine"] == left.id


def test_client_headers_steer(world: World) -> None:
    near, far = world.machine(), world.machine(region="nrt")
    assert world.who()["machine"] == near.id
    assert world.who(headers={"fly-prefer-region": "syd, nrt"})["machine"] == far.id
    assert world.who(headers={"fly-prefer-region": "syd"})["machine"] == near.id
    assert world.http.get("/who", headers={"fly-force-region": "syd"}).status_code == 503
    assert world.who(headers={"fly-force-region": "apac"})["machine"] == far.id
    assert world.who(headers={"fly-force-instance-id": far.id})["machine"] == far.id
    assert world.http.get("/who", headers={"fly-force-instance-id": "unknown"}).status_code == 503
    told = world.who(headers={"fly-prefer-instance-id": "unknown"})
    assert (told["machine"], told["headers"]["fly-preferred-instance-unavailable"]) == (near.id, "unknown")
    told = world.who(headers={"fly-prefer-instance-id": far.id})
    assert told["machine"] == far.id
    assert "fly-preferred-instance-unavailable" not in told["headers"]


# -- fly-replay


def test_a_request_is_replayed_to_an_instance_with_its_body(world: World) -> None:
    near, far = world.machine(), world.machine(region="nrt")
    body = os.urandom(900_000)
    answer = world.http.post("/x", params=replay(f"instance={far.id};state=a=b"), content=body)
    told = answer.json()
    assert (told["machine"], told["method"]) == (far.id, "POST")
    assert told["digest"] == hashlib.sha256(body).hexdigest()
    fields = dict(part.split("=", 1) for part in told["headers"]["fly-replay-src"].split(";"))
    assert fields["instance"], fields["region"] == (near.id, "iad")
    assert fields["state"] == "a=b"
    assert fields["t"].isdigit()
    assert len(fields["t"]) == 16
    # Nothing of the answer that was an order reaches the client.
    assert "fly-replay" not in answer.headers
    assert "set-cookie" not in answer.headers
    line = list(world.edge.journal("request"))[-1]
    assert (line["path"], line["status"], line["machines"]) == ("/x", 200, [near.id, far.id])
    assert told["headers"]["fly-request-id"] == line["request_id"]


def test_a_chunked_body_is_replayed(world: World) -> None:
    world.machine()
    far = world.machine(region="nrt")
    told = world.who(method="POST", params=replay("region=nrt"), content=iter([b"x" * 70_000] * 3))
    assert (told["machine"], told["size"]) == (far.id, 210_000)


@pytest.mark.parametrize("chunked", [False, True])
def test_more_than_a_megabyte_passes_but_is_not_replayed(world: World, chunked: bool) -> None:
    machine = world.machine()
    whole = b"x" * (MB + 1)
    content: Any = (lambda: iter([whole[:MB], whole[MB:]])) if chunked else (lambda: whole)
    assert world.who(method="POST", content=content())["size"] == MB + 1
    answer = world.http.post("/x", params=replay(f"instance={machine.id}"), content=content())
    assert answer.status_code == 502
    assert answer.text == "edge: fly-replay: a request of more than 1 MB cannot be replayed\n"


def test_regions_and_elsewhere(world: World) -> None:
    near, far, third = world.machine(), world.machine(region="nrt"), world.machine(region="cdg")
    assert world.who(params=replay("region=nrt"))["machine"] == far.id
    assert world.who(params=replay('region="syd,eu"'))["machine"] == third.id
    assert world.who(params=replay('region="syd,any"'))["machine"] == near.id
    assert world.who(params=replay("elsewhere=true"))["machine"] in {far.id, third.id}
    missing = world.http.get("/x", params=replay("region=syd"))
    assert (missing.status_code, missing.headers.get("fly-replay")) == (503, None)
    unquoted = world.http.get("/x", params=replay("region=nrt,cdg"))
    assert (unquoted.status_code, unquoted.text) == (
        502,
        'edge: fly-replay: a list of regions must be quoted: region="nrt,cdg"\n',
    )


def test_a_preferred_instance_that_is_away_is_named(world: World) -> None:
    near = world.machine()
    told = world.who(params=replay("prefer_instance=gone"))
    assert (told["machine"], told["headers"]["fly-preferred-instance-unavailable"]) == (near.id, "gone")
    assert world.http.get("/x", params=replay("instance=gone")).status_code == 503
    assert world.http.get("/x", params=replay("app=no-such-app")).status_code == 502


def test_replays_without_end_are_ended(world: World) -> None:
    machine = world.machine()
    answer = world.http.get("/x", params=replay(f"instance={machine.id}", always="1"))
    assert (answer.status_code, answer.text) == (502, "edge: fly-replay: 10 replays led to no answer\n")
    assert len(list(world.edge.journal("request"))[-1]["machines"]) == 11


def test_an_order_in_json_changes_the_request(world: World) -> None:
    world.machine()
    far = world.machine(region="nrt")
    order = {
        "instance": far.id,
        "state": "s",
        "cache": {"prefix": "/x", "ttl": 60},
        "transform": {
            "path": "/new/path?param=value",
            "delete_headers": ["cookie", "fly-client-ip"],
            "set_headers": [{"name": "x-custom", "value": "new"}, {"name": "fly-region", "value": "forged"}],
        },
    }
    told = world.who("/x", method="POST", params={"json": json.dumps(order)}, headers={"cookie": "a=b"}, content=b"abc")
    assert (told["machine"], told["path"], told["size"]) == (far.id, "/new/path?param=value", 3)
    assert told["headers"]["x-custom"] == "new"
    assert told["headers"]["fly-client-ip"] == "127.0.0.1"
    assert told["headers"]["fly-region"] == "iad"
    assert "cookie" not in told["headers"]
    assert world.http.get("/x", params={"json": "nonsense"}).text == "edge: fly-replay: the body is not JSON\n"


@pytest.mark.parametrize("mode", ["force_self", "prefer_self"])
def test_a_replay_to_nobody_falls_back(world: World, mode: str) -> None:
    near = world.machine()
    world.machine(region="nrt")
    params = replay(f"instance=gone;app=shop;fallback={mode}")
    told = world.who("/x", method="POST", params=params, content=b"abc")
    assert (told["machine"], told["size"]) == (near.id, 3)
    assert "fly-replay-src" not in told["headers"]
    failed = dict(part.split("=", 1) for part in told["headers"]["fly-replay-failed"].split(";"))
    elapsed = failed.pop("elapsed_ms")
    assert failed == {"instance": "gone", "app": "shop", "replay_source": near.id, "reason": "no_candidate"}
    assert elapsed.isdigit()
    again = world.http.get("/x", params={**params, "always": "1"})
    assert (again.status_code, "cannot be another replay" in again.text) == (502, True)


def test_the_timeout_of_a_replay_counts(world: World, tmp_path: Path) -> None:
    near = world.machine()
    gate = tmp_path / "gate"
    # Started, and never listening.
    deaf = world.machine(up=False, autostart=True, env={"WAIT_FOR": str(gate)})
    world.client.start(deaf.id)
    world.client.wait(deaf.id, "started")
    told = world.who("/x", params=replay(f"instance={deaf.id};timeout=300ms;fallback=force_self"))
    failed = dict(part.split("=", 1) for part in told["headers"]["fly-replay-failed"].split(";"))
    assert (told["machine"], failed["reason"], failed["instance"]) == (near.id, "timeout", deaf.id)
    assert 300 <= int(failed["elapsed_ms"]) < 25_000
    answer = world.http.get("/x", params=replay(f"instance={deaf.id};timeout=300ms"))
    assert answer.status_code == 503


def test_a_request_falls_back_to_another_machine_only_when_it_may(world: World, tmp_path: Path) -> None:
    other = world.machine(region="nrt")
    deaf = world.machine(up=False, env={"WAIT_FOR": str(tmp_path / "gate")})
    world.client.start(deaf.id)
    world.client.wait(deaf.id, "started")
    for mode, status in (("force_self", 503), ("prefer_self", 200)):
        near = world.machine()
        with ThreadPoolExecutor(1) as pool:
            order = replay(f"instance={deaf.id};timeout=1s;fallback={mode}")
            asked = pool.submit(world.http.get, "/x", params=order)
            until(partial(world.given, near, "ordered"))
            world.client.destroy(near.id, force=True)
            answer = asked.result()
        assert answer.status_code == status
    assert answer.json()["machine"] == other.id
    assert f"replay_source={near.id};reason=timeout" in answer.json()["headers"]["fly-replay-failed"]


# -- autostart and autostop


def test_a_request_starts_a_stopped_machine_once_for_all(world: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    machine = world.machine(up=False, autostart=True, env={"WAIT_FOR": str(gate)})
    with ThreadPoolExecutor(50) as pool:
        limits = httpx.Limits(max_connections=60)
        with httpx.Client(base_url=world.edge.url, timeout=60, limits=limits) as http:
            answers = [pool.submit(http.get, f"/who?n={number}") for number in range(50)]
            until(lambda: world.state(machine) == "started")
            assert not any(answer.done() for answer in answers)
            gate.touch()
            told = [answer.result().json() for answer in answers]
    assert {each["machine"] for each in told} == {machine.id}
    assert {each["path"] for each in told} == {f"/who?n={number}" for number in range(50)}
    starts = [line for line in world.edge.journal("start") if line["machine"] == machine.id]
    assert len(starts) == 1
    assert sum(event.type == "start" for event in world.client.events(machine.id)) == 1


def test_without_autostart_a_stopped_machine_stays_so(world: World) -> None:
    machine = world.machine(up=False)
    assert world.http.get("/who").status_code == 503
    assert world.http.get("/who", headers={"fly-force-instance-id": machine.id}).status_code == 503
    assert world.state(machine) == "stopped"


def test_a_replay_starts_the_instance_it_names(world: World) -> None:
    near = world.machine()
    asleep = world.machine(up=False, autostart=True)
    told = world.who(params=replay(f"instance={asleep.id}"))
    assert told["machine"] == asleep.id
    assert told["headers"]["fly-replay-src"].startswith(f"instance={near.id};")


def test_a_request_waits_for_a_machine_that_stops_and_starts_it_again(world: World) -> None:
    machine = world.machine(autostart=True)
    world.client.stop(machine.id, signal="SIGHUP", timeout="500ms")
    assert world.state(machine) == "stopping"
    assert world.who(method="POST", content=b"abc")["size"] == 3
    assert [line["machine"] for line in world.edge.journal("start")].count(machine.id) == 1
    assert sum(event.type == "start" for event in world.client.events(machine.id)) == 2


def test_a_machine_that_ends_as_soon_as_it_starts_is_given_up(world: World) -> None:
    machine = world.machine(up=False, autostart=True, env={"PORT": "nonsense"})
    assert world.http.get("/who").status_code == 503
    until(lambda: world.state(machine) == "stopped")


def test_idle_machines_stop_and_start_again(emulator: Emulator) -> None:
    with (
        Edge(
            api=emulator.url,
            token=emulator.token,
            app="shop",
            idle_seconds=0.4,
            cache_seconds=0.05,
            patience_seconds=15,
        ) as edge,
        emulator.client() as client,
        World(emulator, edge, client) as world,
    ):
        service = {"autostart": True, "autostop": "stop", "min_machines_running": 1}
        busy = world.machine(**service)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(world.http.get, "/wait?sign=idle")
            until(lambda: world.given(busy, "arrived-idle"))
            never, idle = world.machine(services=[]), world.machine(**service)
            until(lambda: world.state(idle) == "stopped")
            # As many as min_machines_running stay, and a request in flight is work, however long it lasts.
            assert world.state(busy) == "started"
            world.give(busy, "idle")
            assert held.result().text == busy.id
        assert [line["machine"] for line in edge.journal("stop")] == [idle.id]
        assert world.state(never) == "started"
        exited = next(event.exit for event in client.events(idle.id) if event.exit)
        assert (exited.requested_stop, exited.signal) == (True, signal.SIGTERM)
        assert world.who(headers={"fly-force-instance-id": idle.id})["machine"] == idle.id


def test_the_hard_limit_queues(world: World) -> None:
    machine = world.machine(concurrency={"type": "requests", "soft_limit": 1, "hard_limit": 2})
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(world.http.get, f"/wait?sign=hard{number}") for number in range(2)]
        until(lambda: all(world.given(machine, f"arrived-hard{number}") for number in range(2)))
        third = pool.submit(world.http.get, "/give?sign=third")
        world.give(machine, "hard0")
        assert held[0].result().text == machine.id
        assert third.result().text == "given"
        assert not held[1].done()
        world.give(machine, "hard1")
        assert held[1].result().text == machine.id


def test_at_the_hard_limit_for_long_is_a_503(world: World) -> None:
    world.machine()
    full = world.machine(region="nrt", concurrency={"type": "requests", "hard_limit": 1})
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(world.http.get, "/wait?sign=full", headers={"fly-force-instance-id": full.id})
        until(lambda: world.given(full, "arrived-full"))
        answer = world.http.get("/x", params=replay(f"instance={full.id};timeout=200ms"))
        assert (answer.status_code, answer.text) == (503, "edge: no machine of app shop took this request in time\n")
        world.give(full, "full")
        assert held.result().text == full.id


# -- streams


def test_an_answer_streams(world: World) -> None:
    machine = world.machine()
    with world.http.stream("GET", "/stream?sign=last") as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"data: first\n\n"
        # Only now is the rest there to be sent at all.
        world.give(machine, "last")
        assert b"".join(parts) == b"data: last\n\n"


def test_a_request_streams(world: World) -> None:
    machine = world.machine()

    def body() -> Iterator[bytes]:
        yield b"first"
        until(lambda: world.given(machine, "first-bytes"))
        yield b"rest"

    assert world.http.post("/upload?sign=first-bytes", content=body()).text == "9"


def test_a_client_that_leaves_is_noticed_in_the_machine(world: World) -> None:
    machine = world.machine()
    connection = http.client.HTTPConnection("127.0.0.1", int(world.edge.url.rpartition(":")[2]))
    connection.request("GET", "/wait?sign=never")
    until(lambda: world.given(machine, "arrived-never"))
    connection.close()
    until(lambda: world.given(machine, "gone-never"))
    until(lambda: any(line["path"] == "/wait" and line["status"] == 499 for line in world.edge.journal("request")))


def test_a_client_that_leaves_frees_its_place(world: World) -> None:
    machine = world.machine(concurrency={"type": "requests", "hard_limit": 1})
    for number in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", int(world.edge.url.rpartition(":")[2]))
        connection.request("GET", f"/wait?sign=place{number}")
        until(lambda sign=f"arrived-place{number}": world.given(machine, sign))
        # One more waits for the place, and leaves too.
        queued = http.client.HTTPConnection("127.0.0.1", int(world.edge.url.rpartition(":")[2]))
        queued.request("GET", f"/wait?sign=queued{number}")
        queued.close()
        connection.close()
        assert world.who()["machine"] == machine.id
    with world.http.stream("GET", "/stream?sign=place") as answer:
        assert next(answer.iter_raw()) == b"data: first\n\n"
    world.give(machine, "place")
    assert world.who()["machine"] == machine.id


def test_a_large_download_takes_little_memory(world: World) -> None:
    world.machine()
    process = psutil.Process(world.edge.pid)
    world.who()
    before = process.memory_info().rss
    most = size = 0
    with world.http.stream("GET", "/download?mb=200") as answer:
        for part in answer.iter_raw():
            size += len(part)
            if size % (10 * MB) < len(part):
                most = max(most, process.memory_info().rss)
    assert size == 200 * MB
    assert most - before < 40 * MB


def test_an_answer_that_breaks_off_does_not_look_whole(world: World) -> None:
    world.machine()
    with pytest.raises(httpx.RemoteProtocolError):
        world.http.get("/breakoff")


# -- WebSockets


def shake_hands(world: World, path: str) -> tuple[socket.socket, bytes]:
    """A connection that asked for a WebSocket, and the head of the answer."""
    connection = socket.create_connection(("127.0.0.1", int(world.edge.url.rpartition(":")[2])), timeout=20)
    key = base64.b64encode(b"0123456789abcdef").decode()
    head = (
        f"GET {path} HTTP/1.1\r\nHost: shop.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nFly-Client-IP: 6.6.6.6\r\n\r\n"
    )
    connection.sendall(head.encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = connection.recv(1)
        assert data, answer
        answer += data
    return connection, answer


def test_a_websocket_passes_and_is_replayed(world: World) -> None:
    near, far = world.machine(), world.machine(region="nrt")
    for path, machine in (("/ws", near), ("/ws?fly-replay=region%3Dnrt", far)):
        connection, head = shake_hands(world, path)
        with connection:
            assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
            assert b"sec-websocket-accept: BACScCJPNqyz+UBoqMH89VmURoA=" in head
            connection.sendall(b"\x81\x05hello" * 1000)
            expected = machine.id.encode() + b"\x81\x05hello" * 1000
            received = b""
            while len(received) < len(expected):
                received += connection.recv(65_536)
            assert received == expected
        until(partial(world.given, machine, "ws-ended"))


def test_a_websocket_that_is_refused_is_answered_plainly(world: World) -> None:
    connection, head = shake_hands(world, "/ws")
    with connection:
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    world.machine()
    connection, head = shake_hands(world, "/who")
    with connection:
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"6.6.6.6" not in connection.recv(65_536)
