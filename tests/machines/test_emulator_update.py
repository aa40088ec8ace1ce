"""Updates of a machine's config, over real HTTP and with real processes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from tests.machines.conftest import Create, python, until

MACHINES = "/v1/apps/shop/machines"
SHOW = (
    "import os, signal\n"
    "print('value', os.environ.get('VALUE'), os.environ['FLY_MACHINE_VERSION'], flush=True)\n"
    "signal.pause()"
)


def shown(emulator: Emulator, machine: str) -> list[list[str]]:
    """Value and version of each boot so far."""
    return [line.split()[1:] for line in emulator.output(machine).splitlines() if line.startswith("value ")]


def update(http: httpx.Client, machine: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = http.post(f"{MACHINES}/{machine}", json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_running_machine_runs_again_with_its_new_config(
    emulator: Emulator, http: httpx.Client, client: MachinesClient, create: Create
) -> None:
    made = create(python(SHOW, env={"VALUE": "old"}, metadata={"gone": "1"}, auto_destroy=True))
    client.wait(made.id, "started")
    until(lambda: shown(emulator, made.id))
    answer = update(http, made.id, config=python(SHOW, env={"VALUE": "new"}, metadata={"kept": "1"}))
    assert answer["state"] == "replacing"
    assert answer["instance_id"] == answer["version"] != made.instance_id
    assert until(lambda: shown(emulator, made.id)[1:]) == [["new", answer["instance_id"]]]
    found = client.get(made.id)
    assert (found.name, found.region, found.metadata) == (made.name, made.region, {"kept": "1"})
    kinds = [(event.type, event.status, event.source) for event in reversed(found.events)]
    assert kinds == [
        ("launch", "created", "user"),
        ("start", "started", "flyd"),
        ("update", "replacing", "user"),
        ("exit", "stopped", "flyd"),
        ("start", "started", "flyd"),
    ]
    assert found.exit_event is not None
    assert found.exit_event.requested_stop


def test_a_machine_that_is_being_replaced_does_not_start_but_stops(
    emulator: Emulator, http: httpx.Client, client: MachinesClient, create: Create
) -> None:
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SHOW
    made = create(python(stubborn, stop_config={"signal": "SIGTERM", "timeout": "300s"}))
    client.wait(made.id, "started")
    until(lambda: shown(emulator, made.id))
    assert update(http, made.id, config=python(SHOW))["state"] == "replacing"
    assert "'replacing'" in update(http, made.id, 412, config=python(SHOW))["error"]
    refused = http.post(f"{MACHINES}/{made.id}/start")
    assert (refused.status_code, refused.json()["error"]) == (
        412,
        "failed_precondition: machine getting replaced, refusing to start",
    )
    client.stop(made.id, "SIGKILL")
    client.wait(made.id, "stopped")
    assert len(shown(emulator, made.id)) == 1


def test_without_a_launch_what_runs_goes_on(
    emulator: Emulator, http: httpx.Client, client: MachinesClient, create: Create
) -> None:
    made = create(python(SHOW, env={"VALUE": "old"}))
    client.wait(made.id, "started")
    until(lambda: shown(emulator, made.id))
    answer = update(http, made.id, config=python(SHOW, env={"VALUE": "new"}), skip_launch=True)
    assert (answer["state"], answer["config"]["env"]) == ("started", {"VALUE": "new"})
    assert http.post(f"{MACHINES}/{made.id}/restart", params={"signal": "SIGTERM"}).status_code == 200
    assert until(lambda: shown(emulator, made.id)[1:]) == [["new", answer["instance_id"]]]
    assert shown(emulator, made.id)[0] == ["old", made.instance_id]


def test_a_machine_at_rest_is_launched_unless_asked_otherwise(
    emulator: Emulator, http: httpx.Client, client: MachinesClient, create: Create
) -> None:
    made = create(python(SHOW), skip_launch=True)
    client.wait(made.id, "stopped")
    assert update(http, made.id, config=python(SHOW), skip_launch=True)["state"] == "stopped"
    assert update(http, made.id, config=python(SHOW, env={"VALUE": "new"}))["state"] == "starting"
    assert until(lambda: shown(emulator, made.id))[0][0] == "new"


def test_one_of_two_who_update_the_same_version_is_refused(
    http: httpx.Client, client: MachinesClient, create: Create
) -> None:
    made = create(python("pass"), skip_launch=True)
    client.wait(made.id, "stopped")
    body = {"config": python("pass"), "current_version": made.instance_id, "skip_launch": True}
    update(http, made.id, **body)
    refused = update(http, made.id, 409, **body)
    assert refused["error"] == "aborted: machine update failed due to concurrent update"


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "config is required"),
    ({"config": {"image": "unknown:1"}}, 400, "command is required"),
    ({"config": python("pass", image="unknown:1")}, 400, "MANIFEST_UNKNOWN"),
    ({"config": python("pass", guest={"cpus": 3})}, 400, "cpus"),
    ({"config": python("pass"), "name": "another"}, 400, "name cannot change"),
    ({"config": python("pass"), "region": "cdg"}, 400, "region cannot change, this machine is in 'iad'"),
    ({"config": python("pass"), "min_secrets_version": "new"}, 400, "min_secrets_version"),
    ({"config": python("pass"), "lease_ttl": -1}, 400, "ttl"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD, ids=[words for *_, words in BAD])
def test_a_bad_update_changes_nothing(
    http: httpx.Client, client: MachinesClient, create: Create, body: dict[str, Any], status: int, words: str
) -> None:
    made = create(python("pass"), skip_launch=True)
    client.wait(made.id, "stopped")
    assert words in update(http, made.id, status, **body)["error"]
    assert client.get(made.id).instance_id == made.instance_id


def test_an_update_may_repeat_the_name_and_a_group_of_the_region(
    http: httpx.Client, client: MachinesClient, create: Create
) -> None:
    made = create(python("pass"), skip_launch=True)
    client.wait(made.id, "stopped")
    update(http, made.id, config=python("pass"), skip_launch=True, name=made.name, region="us")


def test_a_destroyed_machine_is_not_updated(http: httpx.Client, client: MachinesClient, create: Create) -> None:
    made = create(python("pass"))
    client.destroy(made.id, force=True)
    client.wait(made.id, "destroyed")
    assert "'destroyed'" in update(http, made.id, 412, config=python("pass"))["error"]


def test_a_launch_waits_for_its_version_of_the_secrets(http: httpx.Client, emulator: Emulator) -> None:
    http.post("/v1/apps", json={"name": "versioned", "org_slug": "personal"})
    try:
        machines, secrets = "/v1/apps/versioned/machines", "/v1/apps/versioned/secrets"
        wanted = http.post(secrets, json={"values": {"VALUE": "old"}}).json()["version"] + 1
        made = http.post(machines, json={"config": python(SHOW), "min_secrets_version": wanted}).json()
        body = {"config": python(SHOW), "min_secrets_version": wanted}
        stopped = http.post(machines, json=body).json()["id"]
        until(lambda: http.get(f"{machines}/{stopped}").json()["state"] == "starting")
        assert http.post(f"{machines}/{stopped}/stop", json={}).status_code == 200
        assert http.get(f"{machines}/{made['id']}").json()["state"] == "starting"
        http.post(secrets, json={"values": {"VALUE": "new"}})
        assert until(lambda: shown(emulator, made["id"]))[0][0] == "new"
        assert http.get(f"{machines}/{stopped}").json()["state"] == "stopped"
        assert not shown(emulator, stopped)
    finally:
        http.delete("/v1/apps/versioned")


def test_a_wait_may_name_an_event(http: httpx.Client, client: MachinesClient, create: Create) -> None:
    made = create(python("pass"))
    client.wait(made.id, "stopped")
    event = http.get(f"{MACHINES}/{made.id}/events").json()[-1]["id"]
    params = {"state": "stopped", "from_event_id": event, "timeout": "5"}
    assert http.get(f"{MACHINES}/{made.id}/wait", params=params).json()["state"] == "stopped"


def test_a_cordoned_machine_says_so(http: httpx.Client, create: Create) -> None:
    services = [{"internal_port": 8080, "protocol": "tcp", "ports": [{"port": 80}]}]
    made = create(python("pass", services=services), skip_launch=True)
    path = f"{MACHINES}/{made.id}"
    assert (http.get(path).json()["cordoned"], http.get(path).json()["config"]["services"]) == (False, services)
    assert http.post(f"{path}/cordon").status_code == 200
    assert http.get(path).json()["cordoned"]
    assert http.post(f"{path}/uncordon").status_code == 200
    assert not http.get(path).json()["cordoned"]
    unregistered = create(python("pass"), skip_launch=True, skip_service_registration=True)
    assert http.get(f"{MACHINES}/{unregistered.id}").json()["cordoned"]
