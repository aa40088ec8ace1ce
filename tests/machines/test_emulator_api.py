"""The emulator's answers: words, statuses, filters, pages."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from machinequeue.machines import errors
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.schema import CreateRequest
from tests.machines.conftest import IMAGE, Create, PendingWait, python, until

REST = "raise SystemExit(0)"
MACHINES = "/v1/apps/shop/machines"


def resting(create: Create, **config: Any) -> str:
    """A machine that was never started."""
    return create(python(REST, **config), skip_launch=True).id


def test_a_name_belongs_to_one_living_machine(client: MachinesClient, create: Create) -> None:
    mine = create(python(REST, metadata={"mq_machine": "mine"}), name="taken", skip_launch=True)
    again = CreateRequest("taken", None, python(REST, metadata={"mq_machine": "mine"}))
    assert client.create(again).id == mine.id
    with pytest.raises(errors.NameTaken) as caught:
        client.create(CreateRequest("taken", None, python(REST, metadata={"mq_machine": "yours"})))
    assert caught.value.machine_id == mine.id
    client.destroy(mine.id, force=True)
    assert create(python(REST), name="taken", skip_launch=True).id != mine.id


class Loses(httpx.HTTPTransport):
    """Has the request carried out, then loses the answer of the first create."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if request.method == "POST" and not self.lost:
            self.lost += 1
            response.read()
            response.close()
            raise httpx.ReadTimeout("the answer got lost")
        return response


def test_a_create_whose_answer_is_lost_happens_once(emulator: Emulator, create: Create) -> None:
    transport = Loses()
    request = CreateRequest("lost-answer", None, python(REST, auto_destroy=True, metadata={"mq_machine": "lost-1"}))
    with emulator.client(transport=transport, pause=lambda seconds: None) as client:
        made = client.create(request)
        assert transport.lost == 1
        assert [each.id for each in client.list({"mq_machine": "lost-1"}, include_deleted=True)] == [made.id]


def test_filters_are_joined_by_and(client: MachinesClient, create: Create) -> None:
    one = resting(create, metadata={"color": "red", "size": "s", "test": "filters"})
    two = resting(create, metadata={"color": "red", "size": "m", "test": "filters"})
    found = {each.id: each for each in client.list({"test": "filters", "color": "red"})}
    assert set(found) == {one, two}
    assert [each.id for each in client.list({"test": "filters", "color": "red", "size": "m"})] == [two]
    client.wait(one, "stopped")
    assert [each.id for each in client.list({"test": "filters", "size": "s"}, states=["stopped"])] == [one]
    assert client.list({"test": "filters"}, states=["started"]) == []
    assert client.list({"test": "filters"}, region="cdg") == []


def test_pages_hold_every_machine_once(http: httpx.Client, create: Create) -> None:
    made = [resting(create, metadata={"test": "pages"}) for _ in range(5)]
    found: list[str] = []
    params = {"metadata.test": "pages", "limit": "2"}
    while True:
        page = http.get(MACHINES, params=params)
        assert len(page.json()) <= 2
        found += [each["id"] for each in page.json()]
        if "fly-next-cursor" not in page.headers:
            break
        params["cursor"] = page.headers["fly-next-cursor"]
    assert found == made
    assert http.get(MACHINES, params={"cursor": "nonsense"}).status_code == 400
    assert http.get(MACHINES, params={"limit": "1001"}).status_code == 400
    short = http.get(MACHINES, params={"metadata.test": "pages", "summary": "true"}).json()[0]
    assert not {"config", "events", "checks", "host_status", "nonce"} & set(short)


def test_a_wait_that_is_not_fulfilled(http: httpx.Client, client: MachinesClient, create: Create) -> None:
    machine = resting(create)
    client.wait(machine, "stopped")
    answer = http.get(f"{MACHINES}/{machine}/wait", params={"state": "started", "timeout": 1})
    assert answer.status_code == 408
    assert answer.json() == {
        "error": "deadline_exceeded: machine failed to reach desired state, started, currently stopped"
    }
    with pytest.raises(errors.WaitTimeout):
        client.wait(machine, "started,destroyed", timeout=1)
    assert client.wait(machine, "settled") == "stopped"
    for bad in ({"timeout": "90"}, {"timeout": "0"}, {"timeout": "soon"}, {"state": "happy"}):
        assert http.get(f"{MACHINES}/{machine}/wait", params=bad).status_code == 400
    text = http.get(f"{MACHINES}/{machine}/wait", params={"timeout": 90}).json()["error"]
    assert "value must be inside range [1s, 1m0s]" in text


def test_a_wait_sees_a_state_however_short(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    machine = resting(create, auto_destroy=True)
    client.wait(machine, "stopped")
    waiting = PendingWait(emulator, machine, "started")
    client.start(machine)
    client.wait(machine, "destroyed")
    assert '"state":"started"' in waiting.answer()


def test_metadata_changes_without_a_restart(http: httpx.Client, client: MachinesClient, create: Create) -> None:
    machine = resting(create, metadata={"a": "1"})
    version = client.get(machine).instance_id
    client.set_metadata(machine, "b", "2")
    assert http.patch(f"{MACHINES}/{machine}/metadata", json={"metadata": {"c": "3", "a": None}}).status_code == 204
    assert client.metadata(machine) == {"b": "2", "c": "3"}
    client.delete_metadata(machine, "b")
    client.delete_metadata(machine, "b")
    assert client.get(machine).metadata == {"c": "3"}
    assert client.get(machine).instance_id == version
    assert http.get(f"{MACHINES}/{machine}/metadata/c").json() == {"value": "3"}
    assert http.get(f"{MACHINES}/{machine}/metadata/b").status_code == 404
    stale = {"metadata": {"c": "4"}, "machine_version": "01OLD"}
    assert http.patch(f"{MACHINES}/{machine}/metadata", json=stale).status_code == 412


def test_who_may_not_ask(emulator: Emulator, http: httpx.Client) -> None:
    refused = httpx.get(f"{emulator.url}{MACHINES}", headers={"Authorization": "Bearer wrong"}, trust_env=False)
    assert (refused.status_code, refused.json()) == (401, {"error": "Authenticate: token validation error"})
    assert refused.headers["fly-request-id"]
    unrouted = httpx.get(f"{emulator.url}/v1/nothing", trust_env=False)
    assert (unrouted.status_code, unrouted.text) == (404, "404 page not found\n")
    assert http.delete("/v1/tokens/current").text == "404 page not found\n"
    assert http.get("/v1/apps/unknown/machines").status_code == 404
    assert http.get(f"{MACHINES}/00000000000000").json() == {"error": "not_found: machine not found"}
    flyv1 = httpx.get(
        f"{emulator.url}/v1/tokens/current", headers={"Authorization": f"FlyV1 {emulator.token}"}, trust_env=False
    )
    assert flyv1.json()["tokens"][0]["apps"][0] == "shop"


BAD: list[tuple[Any, int, str]] = [
    ({}, 400, "config is required"),
    ({"config": {}}, 400, "config.image is required"),
    ({"config": python(REST, image="unknown:1")}, 400, "MANIFEST_UNKNOWN"),
    (
        {"config": python(REST, guest={"cpu_kind": "performance", "cpus": 8, "memory_mb": 8192})},
        400,
        "minimum required",
    ),
    ({"config": python(REST, guest={"cpus": "many"})}, 400, "config.guest.cpus"),
    ({"config": python(REST, guest=[])}, 400, "config.guest"),
    ({"config": python(REST, env={"A": 1})}, 400, "config.env"),
    ({"config": python(REST, env={"A=B": "1"})}, 400, "config.env"),
    ({"config": python(REST, env={"A": "\0"})}, 400, "NUL"),
    ({"config": python(REST, metadata=[])}, 400, "config.metadata"),
    ({"config": python(REST, restart={"policy": "sometimes"})}, 400, "restart.policy"),
    ({"config": python(REST, stop_config={"signal": "SIGWHAT"})}, 400, "signal"),
    ({"config": python(REST, stop_config={"timeout": "soon"})}, 400, "duration"),
    ({"config": python(REST, init={"cmd": "python"})}, 400, "list of strings"),
    ({"config": python(REST, init={})}, 400, "command is required"),
    ({"config": python(REST, auto_destroy="yes")}, 400, "auto_destroy"),
    ({"config": python(REST, services={"ports": []})}, 400, "config.services must be a list"),
    ({"config": python(REST, checks=[])}, 400, "config.checks must be an object"),
    ({"config": python(REST, processes=[{"exec": ["true"], "secrets": [{"env_var": []}]}])}, 400, "with env_var"),
    ({"config": python(REST), "region": "xyz"}, 400, "target region 'xyz' not found"),
    ({"config": python(REST), "name": 7}, 400, "name"),
    ({"config": python(REST, mounts=[{"volume": "v"}])}, 501, "config.mounts is not emulated"),
    ([], 400, "cannot unmarshal array"),
    (7, 400, "cannot unmarshal number"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD, ids=[f"{status} {words}" for _, status, words in BAD])
def test_a_bad_request_is_refused_in_words(http: httpx.Client, body: Any, status: int, words: str) -> None:
    answer = http.post(MACHINES, json=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_null_in_a_config_says_nothing(create: Create) -> None:
    made = create(python(REST, env=None, guest=None, schedule=None, size=""), skip_launch=True)
    assert not {"env", "guest", "schedule"} & set(made.config)
    assert (made.guest.cpu_kind, made.guest.memory_mb) == ("shared", 256)


@pytest.mark.parametrize("text", ["{", "NaN", '{"a": Infinity}', '{"name": "\\ud800"}', "[" * 100_000, "\xff"])
def test_what_is_no_json_is_refused(http: httpx.Client, text: str) -> None:
    answer = http.post(MACHINES, content=text.encode("latin-1"))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_argument: request body is not JSON")


def test_what_is_not_emulated_says_so(http: httpx.Client, create: Create) -> None:
    machine = resting(create)
    for method, path in (
        ("POST", "/suspend"),
        ("GET", "/versions"),
        ("GET", "/ps"),
    ):
        answer = http.request(method, f"{MACHINES}/{machine}{path}")
        assert answer.status_code == 501
        assert "is not emulated" in answer.json()["error"]


def test_an_image_by_digest_is_the_same_image(client: MachinesClient, create: Create) -> None:
    by_tag = client.get(resting(create))
    by_digest = create(python(REST, image=f"registry.fly.io/shop@{by_tag.image_digest}"), skip_launch=True)
    assert by_digest.image_digest == by_tag.image_digest
    assert by_tag.image == IMAGE


def test_apps_and_their_secrets(http: httpx.Client, emulator: Emulator) -> None:
    assert http.post("/v1/apps", json={"name": "second", "org_slug": "personal"}).status_code == 201
    taken = http.post("/v1/apps", json={"app_name": "second"})
    assert (taken.status_code, taken.json()["status"]) == (422, "name_taken")
    assert {app["name"] for app in http.get("/v1/apps").json()["apps"]} >= {"shop", "second"}
    secrets = "/v1/apps/second/secrets"
    assert http.post(secrets, json={"values": {"A": "hidden-1", "B": "hidden-2"}}).json()["version"] == 1
    assert http.post(f"{secrets}/C", json={"value": "hidden-3"}).status_code == 201
    assert http.delete(f"{secrets}/A").status_code == 200
    listed = http.get(secrets)
    assert [each["name"] for each in listed.json()["secrets"]] == ["B", "C"]
    assert "hidden" not in listed.text
    assert http.post(secrets, json={"values": {"not a name": "x"}}).status_code == 400
    assert http.delete("/v1/apps/second").status_code == 202
    assert http.get("/v1/apps/second").status_code == 404


def test_secrets_and_app_through_the_client(client: MachinesClient) -> None:
    assert client.secrets() == ["DATABASE_URL", "OTHER_KEY"]
    assert client.app()["name"] == "shop"


def test_regions(http: httpx.Client) -> None:
    assert "iad" in {region["code"] for region in http.get("/v1/platform/regions").json()["Regions"]}


def test_logs_come_in_pages(http: httpx.Client, client: MachinesClient, create: Create) -> None:
    made = create(python("print('\\n'.join(f'line {n}' for n in range(150)))"))
    client.wait(made.id, "stopped")
    first = http.get("/api/v1/apps/shop/logs", params={"instance": made.id}).json()
    messages = [each["attributes"]["message"] for each in first["data"]]
    assert len(messages) == 100
    assert messages[-2:] == ["line 149", "Main child exited with code: 0"]
    start = {"instance": made.id, "next_token": "1"}
    second = http.get("/api/v1/apps/shop/logs", params=start).json()
    assert second["data"][1]["attributes"]["message"] == "line 0"
    rest = {"instance": made.id, "next_token": second["meta"]["next_token"]}
    third = http.get("/api/v1/apps/shop/logs", params=rest).json()
    assert [each["attributes"]["message"] for each in third["data"]][-1] == "Main child exited with code: 0"
    assert len(second["data"]) + len(third["data"]) == 152
    end = http.get("/api/v1/apps/shop/logs", params={"instance": made.id, "next_token": third["meta"]["next_token"]})
    assert end.json() == {"data": [], "meta": third["meta"]}
    assert http.get("/api/v1/apps/unknown/logs").status_code == 401


def test_every_answer_has_a_request_id(http: httpx.Client) -> None:
    ids = [http.get(path).headers["fly-request-id"] for path in ("/v1/apps", "/v1/apps/none", "/nowhere")]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9A-Z]{26}(-iad)?", each) for each in ids)


def test_machines_have_addresses_of_their_own(client: MachinesClient, create: Create) -> None:
    addresses = {client.get(resting(create)).private_ip for _ in range(3)}
    assert len(addresses) == 3


def test_a_forced_destroy_in_any_state(client: MachinesClient, create: Create) -> None:
    for _ in range(5):
        made = create(python("import signal; signal.pause()"))
        client.destroy(made.id, force=True)
        until(lambda made=made: client.get(made.id).state == "destroyed")
