"""Leases: an advisory lock on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.emulator.leases import LOOK_SECONDS
from machinequeue.machines.schema import Lease
from tests.machines.conftest import Create, python, until

MACHINES = "/v1/apps/shop/machines"
REST = python("import signal; signal.pause()")
NONCE = "fly-machine-lease-nonce"


@pytest.fixture
def machine(http: httpx.Client, client: MachinesClient, create: Create) -> Iterator[str]:
    """The path of a machine at rest; its lease is released after the test."""
    made = create(REST, skip_launch=True)
    client.wait(made.id, "stopped")
    path = f"{MACHINES}/{made.id}"
    yield path
    lease = http.get(f"{path}/lease")
    if lease.is_success:
        http.delete(f"{path}/lease", headers={NONCE: lease.json()["nonce"]})


@pytest.fixture
def aside() -> Iterator[Callable[..., Future[httpx.Response]]]:
    """Send a request from another thread."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def acquire(http: httpx.Client, machine: str, **body: Any) -> dict[str, Any]:
    answer = http.post(f"{machine}/lease", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_lease_is_told_flat_and_wrapped(http: httpx.Client, machine: str) -> None:
    answer = acquire(http, machine, ttl=60, description="a deploy")
    assert answer["status"] == "success"
    data = answer["data"]
    assert data == {key: answer[key] for key in ("nonce", "expires_at", "owner", "description", "version")}
    assert data["description"] == "a deploy"
    assert data["version"] == http.get(machine).json()["version"]
    assert abs(data["expires_at"] - time.time() - 60) < 5
    assert Lease.parse(answer) == Lease.parse(data)
    assert http.get(f"{machine}/lease").json() == answer


def test_a_lease_is_shown_with_its_machine_when_asked_for(http: httpx.Client, machine: str) -> None:
    answer = acquire(http, machine, ttl=60)
    assert "lease" not in http.get(machine).json()
    shown = http.get(machine, params={"include_leases": "true"})
    assert shown.json()["lease"] == {key: answer[key] for key in ("description", "expires_at", "owner")}
    listed = http.get(MACHINES, params={"include_leases": "true"})
    assert {each["id"]: each for each in listed.json()}[shown.json()["id"]]["lease"] == shown.json()["lease"]
    assert answer["nonce"] not in shown.text + listed.text


def test_only_the_holder_may_start_update_or_lease(http: httpx.Client, machine: str) -> None:
    nonce = acquire(http, machine, ttl=60)["nonce"]
    bodies = {"/lease": {"ttl": 5}, "/start": {}, "/restart": {}, "": {"config": REST, "skip_launch": True}}
    for wrong in ({}, {NONCE: "another"}):
        for path, body in bodies.items():
            answer = http.post(f"{machine}{path}", json=body, headers=wrong)
            assert answer.status_code == 409
            assert "lease currently held by" in answer.json()["error"]
    assert http.post(machine, json=bodies[""], headers={NONCE: nonce}).status_code == 200
    assert http.get(f"{machine}/lease").json()["nonce"] == nonce
    assert http.post(f"{machine}/start", headers={NONCE: nonce}).status_code == 200


def test_a_lease_can_be_refreshed_and_released(http: httpx.Client, machine: str) -> None:
    first = acquire(http, machine, ttl=10, description="mine")
    nonce = {NONCE: first["nonce"]}
    again = http.post(f"{machine}/lease", params={"ttl": "600"}, headers=nonce)
    assert again.status_code == 201
    assert (again.json()["nonce"], again.json()["description"]) == (first["nonce"], "mine")
    assert again.json()["expires_at"] > first["expires_at"] + 500
    assert http.delete(f"{machine}/lease").status_code == 400
    assert http.delete(f"{machine}/lease", headers={NONCE: "another"}).status_code == 409
    assert http.delete(f"{machine}/lease", headers=nonce).status_code == 200
    assert http.delete(f"{machine}/lease", headers=nonce).status_code == 404
    assert http.get(f"{machine}/lease").status_code == 404
    assert http.post(f"{machine}/start").status_code == 200


def test_a_lease_ends_by_itself(http: httpx.Client, machine: str) -> None:
    first = acquire(http, machine, ttl=1)
    until(lambda: http.get(f"{machine}/lease").status_code == 404)
    assert "lease" not in http.get(machine, params={"include_leases": "true"}).json()
    assert acquire(http, machine, ttl=1)["nonce"] != first["nonce"]


@pytest.mark.parametrize("ttl", [-1, 86_401, 1.5, "soon", True, []])
def test_a_lease_holds_for_whole_seconds(http: httpx.Client, machine: str, ttl: object) -> None:
    answer = http.post(f"{machine}/lease", json={"ttl": ttl})
    assert answer.status_code == 400
    assert "ttl must be" in answer.json()["error"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/stop"), ("DELETE", "?force=true")])
def test_a_stop_and_a_destroy_wait_for_the_lease_to_be_released(
    http: httpx.Client, machine: str, aside: Callable[..., Future[httpx.Response]], method: str, path: str
) -> None:
    nonce = {NONCE: acquire(http, machine, ttl=60)["nonce"]}
    assert http.post(f"{machine}/start", headers=nonce).status_code == 200
    waiting = aside(http.request, method, f"{machine}{path}")
    with pytest.raises(TimeoutError):
        waiting.result(2 * LOOK_SECONDS)
    assert http.get(machine).json()["state"] in ("starting", "started")
    http.delete(f"{machine}/lease", headers=nonce)
    assert waiting.result(60).status_code == 200
    assert http.get(machine).json()["state"] not in ("starting", "started")


def test_a_stop_waits_for_the_lease_to_expire(
    http: httpx.Client, machine: str, aside: Callable[..., Future[httpx.Response]]
) -> None:
    acquire(http, machine, ttl=1)
    assert aside(http.post, f"{machine}/stop").result(60).status_code == 200
    assert http.get(f"{machine}/lease").status_code == 404


def test_the_holder_of_a_lease_stops_at_once(http: httpx.Client, machine: str) -> None:
    nonce = {NONCE: acquire(http, machine, ttl=600)["nonce"]}
    http.post(f"{machine}/start", headers=nonce)
    assert http.post(f"{machine}/stop", headers=nonce).status_code == 200
    assert http.delete(machine, params={"force": "true"}, headers=nonce).status_code == 200
    until(lambda: http.get(machine).json()["state"] == "destroyed")
    assert http.get(f"{machine}/lease").status_code == 404


def test_who_hung_up_stops_nothing_later(emulator: Emulator, http: httpx.Client, machine: str) -> None:
    nonce = {NONCE: acquire(http, machine, ttl=600)["nonce"]}
    http.post(f"{machine}/start", headers=nonce)
    with pytest.raises(httpx.ReadTimeout):
        http.post(f"{machine}/stop", timeout=0.3)
    # The call is given up before the lease ends: it is in the journal with what it became.
    until(lambda: [each for each in emulator.journal() if each.get("path") == f"{machine}/stop"])
    http.delete(f"{machine}/lease", headers=nonce)
    assert http.get(machine).json()["state"] in ("starting", "started")


def test_a_create_and_an_update_can_take_a_lease(http: httpx.Client, client: MachinesClient) -> None:
    made = http.post(MACHINES, json={"config": REST, "lease_ttl": 600, "skip_launch": True}).json()
    path, nonce = f"{MACHINES}/{made['id']}", {NONCE: made["nonce"]}
    assert http.post(f"{path}/start").status_code == 409
    assert "nonce" not in http.get(path).json()
    assert http.delete(f"{path}/lease", headers=nonce).status_code == 200
    client.wait(made["id"], "stopped")
    updated = http.post(path, json={"config": REST, "lease_ttl": 600, "skip_launch": True}).json()
    assert http.post(f"{path}/start").status_code == 409
    assert http.delete(path, headers={NONCE: updated["nonce"]}).status_code == 200


def test_the_lease_of_a_machine_ends_with_it(http: httpx.Client, client: MachinesClient, create: Create) -> None:
    made = create(python("pass", auto_destroy=True), lease_ttl=600)
    client.wait(made.id, "destroyed")
    assert http.get(f"{MACHINES}/{made.id}/lease").status_code == 404
    assert http.post(f"{MACHINES}/{made.id}/lease", json={"ttl": 5}).status_code == 404
