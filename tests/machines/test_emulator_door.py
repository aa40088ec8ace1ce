"""Who may ask the emulator, how often, what apps answer, and that nonsense is refused in words."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from machinequeue.machines.emulator import Emulator
from machinequeue.machines.emulator.answers import Refusal
from machinequeue.machines.emulator.limits import Limits
from machinequeue.machines.emulator.server import ROUTES
from tests.machines.conftest import IMAGE, Create, python, until

MACHINES = "/v1/apps/shop/machines"
REFUSED = {"error": "Authenticate: token validation error"}


# Who -----------------------------------------------------------------------------------------------------------------


def answers_to(emulator: Emulator, header: str) -> int:
    headers = {"Authorization": header} if header else {}
    answer = httpx.get(f"{emulator.url}/v1/tokens/current", headers=headers, trust_env=False)
    if answer.status_code == 401:
        assert answer.json() == REFUSED
    return answer.status_code


def test_a_plain_token(emulator: Emulator) -> None:
    token = emulator.token
    accepted = (f"Bearer {token}", f"bearer {token}", f"FlyV1 {token}", f"Bearer  {token}")
    refused = (
        "",
        token,
        "Bearer",
        f"Basic {token}",
        f"Bearer {token}x",
        f"FlyV1 fm2_x,{token}",
    )
    assert {answers_to(emulator, header) for header in accepted} == {200}
    assert {answers_to(emulator, header) for header in refused} == {401}


def test_macaroons_and_never_a_mixture() -> None:
    pasted = "FlyV1 fm2_one,fm1a_two,fo1_user"
    with Emulator(token=pasted) as emulator:
        accepted = ("FlyV1 fm2_one,fm1a_two", "FlyV1 fm1a_two, fm2_one", "Bearer fm2_one,fm1a_two")
        refused = (pasted, "FlyV1 fm2_one", "Bearer fo1_user", "FlyV1 fm2_one,fm1a_two,fm2_three")
        assert {answers_to(emulator, header) for header in accepted} == {200}
        assert {answers_to(emulator, header) for header in refused} == {401}
        with emulator.client() as client:
            assert client.app()["name"] == "emulated"
            assert emulator.faults.list() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/apps/"),
        ("HEAD", "/v1/apps"),
        ("OPTIONS", "/v1/apps"),
        ("PUT", MACHINES),
        ("TRACE", MACHINES),
        ("GET", "/v1/apps/shop/machines/x/start"),
        ("POST", "/_emulator/kinds"),
        ("GET", "/_emulator"),
    ],
)
def test_what_is_not_there_is_not_there_for_anybody(emulator: Emulator, method: str, path: str) -> None:
    answer = httpx.request(method, emulator.url + path, trust_env=False)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == ("" if method == "HEAD" else "404 page not found\n")


# How often -----------------------------------------------------------------------------------------------------------


def granted(limits: Limits, action: str, identifiers: list[str]) -> int:
    """How many requests are granted before the first that is not."""
    for count, identifier in enumerate(identifiers):
        try:
            limits.spend(action, identifier)
        except Refusal:
            return count
    return len(identifiers)


def test_limits_are_per_action_and_identifier(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    limits = Limits(on=True)
    assert granted(limits, "create", ["shop"] * 9) == 3
    assert granted(limits, "list", ["shop"] * 9) == 3
    assert granted(limits, "create", ["other"] * 9) == 3
    assert granted(limits, "get", ["m"] * 20) == 10
    assert granted(limits, "app-delete", [f"app-{number}" for number in range(200)]) == 100
    assert granted(limits, "app-get", ["shop"] * 200) == 200
    now[0] += 1
    assert granted(limits, "create", ["shop"] * 9) == 1
    assert granted(limits, "get", ["m"] * 20) == 5
    now[0] += 60
    assert granted(limits, "create", ["shop"] * 9) == 3
    assert granted(limits, "app-delete", [f"app-{number}" for number in range(200)]) == 100
    assert granted(Limits(on=False), "create", ["shop"] * 200) == 200


# Apps ----------------------------------------------------------------------------------------------------------------


def test_an_app_is_created_once_for_one_key(http: httpx.Client) -> None:
    first = http.post("/v1/apps", json={"name": "keyed", "idempotency_key": "k1"})
    again = http.post("/v1/apps", json={"name": "keyed", "idempotency_key": "k1"})
    nameless = http.post("/v1/apps", json={"idempotency_key": "k1"})
    assert [first.status_code, again.json(), nameless.json()] == [201, first.json(), first.json()]
    assert http.post("/v1/apps", json={"name": "other", "idempotency_key": "k1"}).status_code == 422
    assert http.post("/v1/apps", json={"name": "keyed", "idempotency_key": "k2"}).json()["status"] == "name_taken"
    assert http.post("/v1/apps", json={"name": "keyed", "idempotency_key": 7}).status_code == 400
    assert http.delete("/v1/apps/keyed").status_code == 202
    assert http.post("/v1/apps", json={"name": "keyed", "idempotency_key": "k1"}).status_code == 201
    http.delete("/v1/apps/keyed")
    named = http.post("/v1/apps", json={}).json()["id"]
    assert http.delete(f"/v1/apps/{named}").status_code == 202


def test_apps_come_in_pages(http: httpx.Client) -> None:
    for number in range(3):
        http.post("/v1/apps", json={"name": f"page-{number}"})
    whole = http.get("/v1/apps").json()
    assert "next_cursor" not in whole
    found, cursor = [], ""
    while cursor is not None:
        page = http.get("/v1/apps", params={"limit": 2, "cursor": cursor}).json()
        assert page["total_apps"] == whole["total_apps"]
        found += page["apps"]
        cursor = page.get("next_cursor")
    assert found == whole["apps"]
    assert http.get("/v1/apps", params={"limit": "5001"}).status_code == 400
    assert http.get("/v1/apps", params={"cursor": "nonsense"}).status_code == 400
    for number in range(3):
        http.delete(f"/v1/apps/page-{number}")


def test_an_app_whose_machines_run_is_deleted_when_they_rest_or_by_force(http: httpx.Client) -> None:
    ids = []
    for name in ("patient", "forced"):
        http.post("/v1/apps", json={"name": name})
        config = {"image": IMAGE, "init": {"exec": ["sleep", "1000"]}, "restart": {"policy": "no"}}
        ids.append(http.post(f"/v1/apps/{name}/machines", json={"config": config}).json()["id"])
        http.get(f"/v1/apps/{name}/machines/{ids[-1]}/wait", params={"state": "started"})
    assert http.delete("/v1/apps/forced", params={"force": "true"}).status_code == 202
    assert http.get("/v1/apps/forced").status_code == 404
    assert http.delete("/v1/apps/patient").status_code == 202
    assert http.get("/v1/apps/patient").status_code == 200
    http.post(f"/v1/apps/patient/machines/{ids[0]}/stop", json={"signal": "SIGTERM"})
    until(lambda: http.get("/v1/apps/patient").status_code == 404)


# Nonsense ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1e400}',
        '{"a": 99999999999999999999}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a":' * 5000,
        '{"config": "\\ud800"}',
        "\0",
    ],
    ids=["infinite", "beyond 64 bits", "five thousand digits", "deep", "half a surrogate pair", "NUL"],
)
def test_json_that_nobody_can_mean(http: httpx.Client, text: str) -> None:
    answer = http.post(MACHINES, content=text)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_argument: request body is not JSON")


def test_a_huge_body_is_refused_and_a_chunked_one_is_read(http: httpx.Client) -> None:
    def chunks(count: int) -> Iterator[bytes]:
        yield b'{"name": "'
        for _ in range(count):
            yield b"x" * 65536
        yield b'"}'

    answer = http.post(MACHINES, content=chunks(10))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_argument: config is required")
    try:
        status = http.post(MACHINES, content=chunks(200)).status_code
    except httpx.TransportError:  # the refusal came while the body was still on its way
        status = 413
    assert status == 413
    assert http.get("/v1/apps/shop").status_code == 200


def test_a_client_that_goes_away_in_the_middle_is_no_failure(emulator: Emulator, http: httpx.Client) -> None:
    address = ("127.0.0.1", int(emulator.url.rpartition(":")[2]))
    head = (
        f"POST {MACHINES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {emulator.token}\r\nContent-Length: 99\r\n\r\n"
    )
    for text in (head.encode() + b'{"name"', b"\x16\x03\x01\x00\xff\r\n\r\n", b"GET / HTTP/9\r\n\r\n"):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(text)
    assert http.get("/v1/apps/shop").status_code == 200
    assert (emulator.state_dir / "emulator.stderr").read_text() == ""


WORDS = ["", "a", IMAGE, "python", "\0", "é\U0001f600", "x" * 5000, "iad,eu", "SIGTERM", "30s", "-1", "always", "../.."]
NUMBERS = [0, 1, -1, 2**31, 2**63 - 1, 1.5, 1e308, True, False, None]
GOOD = {
    "name": "fuzz",
    "region": "iad",
    "skip_launch": True,
    "config": python(
        "",
        guest={"cpus": 1, "memory_mb": 256, "cpu_kind": "shared"},
        env={"A": "1"},
        metadata={"a": "b"},
        stop_config={"signal": "SIGTERM", "timeout": "1s"},
        processes=[{"exec": ["true"], "env": {"B": "2"}, "secrets": [{"env_var": "C"}]}],
    ),
    "metadata": {"a": "b"},
    "values": {"A": None},
    "value": "v",
    "kind": "slow",
    "delay": 0,
    "times": 1,
}


def bent(value: Any, dice: random.Random) -> Any:
    """The value with some parts replaced by something else."""
    if dice.random() < 0.06:
        return dice.choice([dice.choice(WORDS), dice.choice(NUMBERS), [], {}, [dice.choice(NUMBERS)], {"": []}])
    if isinstance(value, dict):
        return {key: bent(each, dice) for key, each in value.items()}
    return [bent(each, dice) for each in value] if isinstance(value, list) else value


def test_no_nonsense_makes_it_fail(image_dir: Path) -> None:
    writes = [(method, path) for method, path, *_ in ROUTES if method in ("POST", "PATCH", "PUT")]
    writes = [(method, path) for method, path in writes if not path.endswith("/exec")]
    seed = random.randrange(10**9)
    dice = random.Random(seed)
    with Emulator(app="shop", images={IMAGE: image_dir}) as emulator:
        headers = {"Authorization": f"Bearer {emulator.token}"}
        with httpx.Client(base_url=emulator.url, headers=headers, trust_env=False) as http:
            for number in range(400):
                if number % 40 == 0:  # a new one: leases make a machine wait
                    machine = http.post(MACHINES, json={**GOOD, "name": f"m-{number}"}).json()["id"]
                    assert http.delete("/_emulator/faults").status_code == 200
                method, path = dice.choice([*writes, ("POST", MACHINES), ("POST", "/_emulator/faults")])
                where = {"app": "shop", "machine": machine, "name": "A", "key": "k"}
                if method == "POST" and path.endswith(("/lease", "/stop")):
                    continue
                answer = http.request(method, path.format(**where), content=json.dumps(bent(GOOD, dice)))
                assert answer.status_code != 500, (seed, path, answer.text)
                assert "fly-request-id" in answer.headers
        assert (emulator.state_dir / "emulator.stderr").read_text() == "", seed


def test_numbers_of_a_query_are_looked_at(http: httpx.Client, create: Create) -> None:
    machine = create(python(""), skip_launch=True).id
    for path, params in (
        (MACHINES, {"limit": "9" * 30}),
        (MACHINES, {"limit": "\u0661"}),
        (f"{MACHINES}/{machine}/events", {"limit": "-1"}),
        (f"{MACHINES}/{machine}/wait", {"timeout": "1e3"}),
        ("/api/v1/apps/shop/logs", {"next_token": "x"}),
        ("/_emulator/faults/f1/wait", {"timeout": "0"}),
    ):
        answer = http.get(path, params=params)
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]
