"""The emulator misbehaves on demand: each kind of fault over real HTTP, and through the client where it copes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from machinequeue.machines import errors
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.emulator.misbehaviours import KINDS
from machinequeue.machines.emulator.remote_faults import FaultError, Faults
from machinequeue.machines.schema import CreateRequest, Machine
from machinequeue.machines.server_process import PACKAGE_ROOT
from tests.machines.conftest import IMAGE, Create, python, until

MACHINES = "/v1/apps/shop/machines"
FOREVER = "import signal; print('up', flush=True); signal.pause()"


_numbers = iter(range(1, 10_000))


def request(**fields: Any) -> CreateRequest:
    """A create of a machine that never starts, known by name and metadata."""
    name = fields.pop("name", f"faulty-{next(_numbers)}")
    config = python("raise SystemExit(0)", metadata={"mq_machine": name}, **fields.pop("config", {}))
    return CreateRequest(name, fields.pop("region", None), config, **{"skip_launch": True, **fields})


def made(client: MachinesClient, name: str) -> list[Machine]:
    """Every machine there ever was by that name."""
    return [each for each in client.list({"mq_machine": name}, include_deleted=True) if each.name == name]


def in_thread(act: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """The thread that does it, and what came of it."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(act())
        except (errors.MachinesError, httpx.HTTPError) as error:
            came.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, came


# Room ----------------------------------------------------------------------------------------------------------------

SHAPES = [
    ("candidate", 422, "could not find a candidate host", "insufficient_capacity", errors.NoCapacity),
    ("volume", 412, "host is full", "volume_placement_capacity", errors.NoCapacity),
    ("memory", 409, "insufficient memory available to fulfill request", None, errors.NoCapacity),
    ("cpus", 409, "insufficient CPUs available to fulfill request", None, errors.NoCapacity),
    ("resources", 409, "insufficient resources available to fulfill request", None, errors.NoCapacity),
    ("reserve", 409, "could not reserve resource for machine", None, errors.NoCapacity),
    ("no_capacity", 409, "iad: no capacity", None, errors.NoCapacity),
    ("no_capacity_400", 400, "iad: no capacity", None, errors.NoCapacity),
    ("governor", 409, "governor policy blocked start", None, errors.NoCapacity),
    ("deploys_disabled", 409, "deploys to this host are temporarily disabled", None, errors.NoCapacity),
    ("quota", 403, "over the allowed quota", None, errors.QuotaReached),
    ("machine_limit", 422, "reached its machine limit. Please contact billing@fly.io", None, errors.QuotaReached),
]


@pytest.mark.parametrize(("shape", "status", "words", "code", "error"), SHAPES, ids=[row[0] for row in SHAPES])
def test_want_of_room_is_said_in_each_of_fly_s_ways(
    client: MachinesClient,
    http: httpx.Client,
    faults: Faults,
    shape: str,
    status: int,
    words: str,
    code: str | None,
    error: type[errors.MachinesError],
) -> None:
    asked = request()
    with faults.add("capacity", shape=shape, times=2) as fault:
        answer = http.post(MACHINES, json=asked.as_dict())
        assert answer.status_code == status
        assert words in answer.json()["error"]
        assert answer.json().get("status") == code
        with pytest.raises(error):
            client.create(asked)
        assert client.list({"mq_machine": asked.name}, include_deleted=True) == []
        client.destroy(client.create(asked).id, force=True)  # twice, then there is room
        assert (fault.fired, fault.active) == (2, False)


def test_every_shape_is_tried() -> None:
    shapes = KINDS["capacity"].parameters["shape"].says
    assert {row[0] for row in SHAPES} == set(shapes.partition(": ")[2].split(", "))


def test_a_create_that_lists_other_regions_lands_in_the_next_one_with_room(
    client: MachinesClient, create: Create, faults: Faults
) -> None:
    full = faults.add("capacity", region="iad,ord")
    assert create(python(""), region="iad,ewr", skip_launch=True).region == "ewr"
    assert create(python(""), region="ord,iad,cdg", skip_launch=True).region == "cdg"
    assert create(python(""), region="us", skip_launch=True).region not in ("iad", "ord")
    assert full.fired == 3
    assert create(python(""), region="cdg,iad", skip_launch=True).region == "cdg"
    assert full.fired == 3
    for region in ("iad", "iad,ord", None):
        with pytest.raises(errors.NoCapacity):
            client.create(request(region=region))
    assert full.fired == 6
    full.remove()
    assert full.fired == 6
    assert create(python(""), region="iad,ewr", skip_launch=True).region == "iad"


def test_a_machine_that_cannot_start_where_it_is(client: MachinesClient, create: Create, faults: Faults) -> None:
    machine, other = create(python(""), skip_launch=True), create(python(""), skip_launch=True)
    for each in (machine, other):
        client.wait(each.id, "stopped")
    with faults.add("capacity", "start", shape="memory", machine=machine.name) as fault:
        with pytest.raises(errors.NoCapacity) as caught:
            client.start(machine.id)
        assert caught.value.scope == "host"
        client.start(other.id)
        assert fault.fired == 1
        assert fault.last["machine"] == machine.id


# Answers -------------------------------------------------------------------------------------------------------------


def test_too_many_requests(client: MachinesClient, faults: Faults) -> None:
    with faults.add("rate_limited", "list", times=1):
        with pytest.raises(errors.RateLimited) as caught:
            client.list()
        assert (caught.value.message, caught.value.retry_after) == ("resource_exhausted: rate limit exceeded", None)
        client.list()
    with faults.add("rate_limited", retry_after=7), pytest.raises(errors.RateLimited) as caught:
        client.app()
    assert caught.value.retry_after == 7


@pytest.mark.parametrize(("kind", "status"), [("unauthorized", 401), ("forbidden", 403)])
def test_a_token_that_does_not_count_any_more(client: MachinesClient, faults: Faults, kind: str, status: int) -> None:
    with faults.add(kind, seconds=60) as fault:
        with pytest.raises(errors.Unauthorized) as caught:
            client.app()
        assert caught.value.status == status
    client.app()
    assert fault.fired == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize(
    ("body", "media", "words"),
    [
        ("json", "application/json", '{"error":"'),
        ("html", "text/html", "<html>"),
        ("plain", "text/plain", ""),
        ("empty", "", ""),
    ],
)
def test_a_failing_server(http: httpx.Client, faults: Faults, status: int, body: str, media: str, words: str) -> None:
    with faults.add("server_error", "app-get", status=status, body=body):
        answer = http.get("/v1/apps/shop")
        assert answer.status_code == status
        assert answer.headers.get("content-type", "").startswith(media)
        assert words in answer.text
        assert bool(answer.content) == (body != "empty")
        assert answer.headers["fly-request-id"]


@pytest.mark.parametrize(
    ("kind", "terms"),
    [
        ("lose_answer", {}),
        ("timed_out", {}),
        ("reset", {"when": "after"}),
        ("reset", {"when": "before"}),
        ("server_error", {"when": "after", "times": 1, "status": 502, "body": "html"}),
        ("server_error", {"when": "before", "times": 1}),
        ("broken_body", {"shape": "cut"}),
        ("answer", {"status": 408, "text": "timed out", "when": "after", "times": 1}),
    ],
    ids=str,
)
def test_whatever_happens_to_the_answer_one_machine_is_made(
    patient: MachinesClient, faults: Faults, kind: str, terms: dict[str, Any]
) -> None:
    asked = request()
    fault = faults.add(kind, "create", name=asked.name, **terms)
    machine = patient.create(asked)
    assert fault.fired == 1
    assert [each.id for each in made(patient, asked.name)] == [machine.id]
    patient.destroy(machine.id, force=True)


def test_an_answer_is_lost_after_the_effect_and_nothing_is_lost_of_a_refusal(
    http: httpx.Client, client: MachinesClient, faults: Faults
) -> None:
    asked = request()
    fault = faults.lose_answer(["create", "destroy"], times=2)
    assert http.post(MACHINES, json={}).status_code == 400
    assert fault.fired == 0
    with pytest.raises(httpx.RemoteProtocolError):
        http.post(MACHINES, json=asked.as_dict())
    [machine] = made(client, asked.name)
    assert fault.last == {"action": "create", "app": "shop", "machine": machine.id, "name": asked.name, "region": "iad"}
    with pytest.raises(httpx.RemoteProtocolError):
        http.delete(f"{MACHINES}/{machine.id}", params={"force": "true"})
    assert client.get(machine.id).state == "destroyed"


def test_a_connection_is_reset_before_anything_happens(
    http: httpx.Client, client: MachinesClient, faults: Faults
) -> None:
    asked = request()
    with faults.add("reset", "create"), pytest.raises(httpx.ReadError, match=r"reset|104"):
        http.post(MACHINES, json=asked.as_dict())
    assert made(client, asked.name) == []


def test_half_a_body(http: httpx.Client, create: Create, faults: Faults) -> None:
    machine = create(python(""), skip_launch=True).id
    faults.add("broken_body", "app-get")
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed"):
        http.get("/v1/apps/shop")
    faults.add("broken_body", ["app-get", "metadata-set"], shape="garbled")
    assert http.post(f"{MACHINES}/{machine}/metadata/k", json={"value": "v"}).status_code == 204  # it has no body
    answer = http.get("/v1/apps/shop")
    assert answer.status_code == 200
    with pytest.raises(ValueError, match=r"delimiter|Unterminated|Expecting"):
        answer.json()
    assert http.get("/v1/apps/shop").json()["name"] == "shop"


def test_what_came_garbled_is_asked_again_or_looked_up(
    client: MachinesClient, emulator: Emulator, faults: Faults
) -> None:
    with faults.add("broken_body", "create", shape="garbled") as garbled:
        machine = client.create(request())
    assert garbled.fired == 1
    assert machine.id
    assert [each.id for each in made(client, machine.name)] == [machine.id]
    faults.add("broken_body", "get", shape="garbled", times=2)
    with pytest.raises(errors.Unreachable, match="not what was asked for"):
        client.get(machine.id)
    with emulator.client() as patient:
        assert patient.get(machine.id).id == machine.id
    faults.add("broken_body", "lease", shape="garbled")
    with pytest.raises(errors.Ambiguous):
        client.acquire_lease(machine.id, 5)


# Time ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_slow_answer(emulator: Emulator, client: MachinesClient, faults: Faults, when: str) -> None:
    asked, began = request(), time.time()
    fault = faults.add("slow", "create", when=when, delay=3600, times=1)
    with (
        emulator.client(timeout=0.3, pause=lambda seconds: None) as hasty,
        contextlib.suppress(errors.Ambiguous),  # it may give up before it finds the machine
    ):
        hasty.create(asked)
    assert len(made(client, asked.name)) == (when == "after")
    machine = client.create(asked)
    fault.remove()  # which lets the first one go on: too late
    until(
        lambda: len([line for line in emulator.journal() if line["at"] > began and line.get("path") == MACHINES]) == 2
    )
    assert [each.id for each in made(client, asked.name)] == [machine.id]
    assert fault.fired == 1
    client.destroy(machine.id, force=True)
    before = time.monotonic()
    with faults.add("slow", "app-get", delay=0.2, when=when):
        client.app()
    assert time.monotonic() - before >= 0.2


KILLED = """
import sys
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.schema import CreateRequest
client = MachinesClient("shop", token=sys.argv[2], base_url=sys.argv[1])
config = {"image": sys.argv[3], "init": {"cmd": ["python", "-V"]}, "metadata": {"mq_machine": "killed"}}
client.create(CreateRequest("killed", None, config, skip_launch=True))
print("answered", flush=True)
"""


def test_a_client_is_killed_while_its_create_is_done_and_unanswered(
    emulator: Emulator, client: MachinesClient, faults: Faults
) -> None:
    hold = faults.hold("create", name="kill*")
    words = [sys.executable, "-c", KILLED, emulator.url, emulator.token, IMAGE]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=PACKAGE_ROOT) as victim:
        assert hold.wait().holding == 1
        [orphan] = made(client, "killed")
        assert hold.last["machine"] == orphan.id
        victim.kill()
        assert victim.communicate()[0] == b""
    hold.release()
    until(lambda: hold.holding == 0)
    config = {"image": IMAGE, "init": {"cmd": ["python", "-V"]}, "metadata": {"mq_machine": "killed"}}
    assert client.create(CreateRequest("killed", None, config)).id == orphan.id
    client.destroy(orphan.id, force=True)


def test_a_call_that_is_held_before_its_effect(http: httpx.Client, client: MachinesClient, faults: Faults) -> None:
    one, two = request(), request()
    hold = faults.hold("create", after=False, times=2)
    first, came = in_thread(lambda: http.post(MACHINES, json=one.as_dict()))
    hold.wait()
    assert made(client, one.name) == []
    hold.release()
    first.join()
    assert came[0].json()["id"] == made(client, one.name)[0].id
    second, came = in_thread(lambda: http.post(MACHINES, json=two.as_dict()))
    until(lambda: hold.fired == 2)
    hold.release(drop=True)
    second.join()
    assert isinstance(came[0], httpx.RemoteProtocolError)
    assert made(client, two.name) == []
    client.destroy(made(client, one.name)[0].id, force=True)


def test_removing_a_hold_releases_it(http: httpx.Client, faults: Faults) -> None:
    with faults.hold("app-get") as hold:
        thread, came = in_thread(lambda: http.get("/v1/apps/shop"))
        hold.wait()
        assert came == []
    thread.join()
    assert came[0].status_code == 200
    assert not hold.active


def test_a_frozen_api_answers_nobody_and_does_what_was_asked_when_it_thaws(
    emulator: Emulator, client: MachinesClient, faults: Faults
) -> None:
    asked = request()
    with faults.freeze() as freeze, emulator.client(timeout=0.2, pause=lambda seconds: None) as hasty:
        with pytest.raises(errors.Unreachable):
            hasty.app()
        with pytest.raises(errors.Ambiguous):
            hasty.create(asked)
        assert freeze.holding >= 3
    until(lambda: made(client, asked.name))
    client.destroy(made(client, asked.name)[0].id, force=True)


def test_an_emulator_ends_though_calls_are_held(image_dir: Any) -> None:
    with Emulator(app="shop", images={IMAGE: image_dir}) as emulator:
        hold = emulator.faults.hold("create", after=False)
        headers = {"Authorization": f"Bearer {emulator.token}"}
        url = emulator.url + MACHINES
        thread, came = in_thread(
            lambda: httpx.post(url, json=request().as_dict(), headers=headers, trust_env=False, timeout=20)
        )
        hold.wait()
        emulator.stop()
        thread.join()
        assert isinstance(came[0], httpx.RemoteProtocolError)


# What is seen --------------------------------------------------------------------------------------------------------


def test_a_list_as_it_was(client: MachinesClient, http: httpx.Client, faults: Faults) -> None:
    old = client.create(request(name="old"))
    client.wait(old.id, "stopped")
    with faults.add("stale_list") as stale:
        client.set_metadata(old.id, "color", "red")
        new = client.create(request(name="new"))
        client.destroy(old.id)
        [seen] = [each for each in client.list() if each.name in ("old", "new")]
        assert (seen.id, seen.state, seen.metadata) == (old.id, "stopped", {"mq_machine": "old"})
        assert [event.type for event in seen.events] == ["launch"]
        assert client.list({"color": "red"}) == []
        everywhere = http.get("/v1/orgs/personal/machines").json()["machines"]
        assert [(each["id"], each["state"]) for each in everywhere if each["name"] == "old"] == [(old.id, "stopped")]
        assert "new" not in [each["name"] for each in everywhere]
        assert client.get(new.id).name == "new"
        assert stale.fired == 3
    assert old.id not in [each.id for each in client.list()]
    client.destroy(new.id, force=True)


def test_a_list_that_is_empty_though_there_are_machines(
    http: httpx.Client, patient: MachinesClient, create: Create, faults: Faults
) -> None:
    machine = create(python(""), skip_launch=True)
    with faults.add("empty_list", seconds=60) as empty:
        assert patient.list() == []
        assert http.get("/v1/orgs/personal/machines").json()["machines"] == []
        assert patient.get(machine.id).id == machine.id
        # Nothing is found after the lost answer, and still there is one machine.
        faults.lose_answer("create")
        asked = request()
        again = patient.create(asked)
    assert empty.fired >= 2
    assert [each.id for each in made(patient, asked.name)] == [again.id]
    patient.destroy(again.id, force=True)


def test_a_machine_that_is_not_visible_yet(client: MachinesClient, create: Create, faults: Faults) -> None:
    older = create(python(""), skip_launch=True)
    fault = faults.add("not_visible", times=2)
    newer = create(python(""), skip_launch=True)
    assert client.get(older.id).id == older.id
    with pytest.raises(errors.NotFound, match="machine not found"):
        client.get(newer.id)
    with pytest.raises(errors.NotFound):
        client.wait(newer.id, "stopped")
    assert client.wait(newer.id, "stopped") == "stopped"
    assert fault.fired == 2


def test_every_machine_is_invisible_for_a_minute(client: MachinesClient, create: Create, faults: Faults) -> None:
    fault = faults.add("not_visible", age=60)
    for count in (1, 2):
        machine = create(python(""), skip_launch=True)
        with pytest.raises(errors.NotFound):
            client.get(machine.id)
        with faults.add("clock", offset=61):
            assert client.get(machine.id).id == machine.id
        assert fault.fired == count


def test_regions_by_either_key(http: httpx.Client, faults: Faults) -> None:
    both = http.get("/v1/platform/regions").json()
    assert both["Regions"] == both["regions"]
    with faults.add("regions_key"):
        assert set(http.get("/v1/platform/regions").json()) == {"Regions", "Nearest"}
    with faults.add("regions_key", key="regions"):
        assert set(http.get("/v1/platform/regions").json()) == {"regions", "nearest"}


def test_an_image_that_the_registry_does_not_know_yet(client: MachinesClient, create: Create, faults: Faults) -> None:
    fault = faults.add("manifest_unknown", image=IMAGE, times=2)
    for _ in range(2):
        with pytest.raises(errors.ImageNotFound):
            client.create(request())
    create(python(""), skip_launch=True)
    assert fault.fired == 2
    with faults.add("manifest_unknown", image="registry.fly.io/shop:other"):
        create(python(""), skip_launch=True)
    with faults.add("manifest_unknown") as gone:
        with pytest.raises(errors.ImageNotFound):
            client.create(request())
        assert gone.active
    create(python(""), skip_launch=True)


def test_a_clock_that_is_off(emulator: Emulator, client: MachinesClient, create: Create, faults: Faults) -> None:
    with faults.add("clock", offset=-86_400) as fault:
        machine = create(python(""))
        client.wait(machine.id, "stopped")
        found = client.get(machine.id)
        said = client.clock()
        assert fault.fired == 1
    assert said is not None
    assert 86_390 < (datetime.now(UTC) - said).total_seconds() < 86_490
    assert found.exit_event is not None
    assert found.exit_event.exited_at is not None
    created = found.created_at
    assert created is not None
    now = datetime.now(UTC)
    for at in (
        created,
        found.exit_event.exited_at,
        *(datetime.fromtimestamp(each.timestamp / 1000, UTC) for each in found.events),
    ):
        assert 86_390 < (now - at).total_seconds() < 86_490
    straight = create(python(""), skip_launch=True)
    assert straight.created_at is not None
    assert abs((now - straight.created_at).total_seconds()) < 60


# Machines ------------------------------------------------------------------------------------------------------------


def up(emulator: Emulator, machine: Machine, times: int = 1) -> None:
    until(lambda: emulator.output(machine.id).count("up\n") == times)


def test_a_machine_that_stays_in_created_and_boots_late(
    emulator: Emulator, client: MachinesClient, create: Create, faults: Faults
) -> None:
    fault = faults.add("late_boot", name="late-*", delay=1.2, times=1)
    hold = faults.hold("create", after=False, name="late-0")
    thread, came = in_thread(lambda: client.create(CreateRequest("late-0", None, python(FOREVER), skip_launch=True)))
    hold.wait()
    with pytest.raises(errors.Rejected):
        client.create(CreateRequest("late-1", "nowhere", python("")))
    prompt = create(python(FOREVER))
    up(emulator, prompt)  # though another create is held
    hold.release(drop=True)
    thread.join()
    assert isinstance(came[0], errors.Ambiguous)
    late = create(python(FOREVER), name="late-2")
    with pytest.raises(errors.WaitTimeout, match="currently created"):
        client.wait(late.id, "started", timeout=1)
    assert client.wait(late.id, "started") == "started"
    up(emulator, late)
    assert (fault.fired, fault.active) == (1, False)


def test_a_host_is_lost_and_returns(emulator: Emulator, client: MachinesClient, create: Create, faults: Faults) -> None:
    machine = create(python(FOREVER))
    up(emulator, machine)
    lost = faults.vanish(machine.name)
    found = client.get(machine.id)
    assert (found.state, found.host_status, found.exit_event) == ("started", "unreachable", None)
    lost.remove()
    assert client.wait(machine.id, "stopped") == "stopped"
    assert client.get(machine.id).host_status == "ok"
    with pytest.raises(FaultError, match="not lost"):
        faults.return_host(machine.id)
    client.start(machine.id)
    up(emulator, machine, times=2)
    faults.vanish(machine.id)
    assert faults.return_host(machine.id).fired == 1
    assert client.get(machine.id).host_status == "ok"


def test_a_machine_migrates(emulator: Emulator, client: MachinesClient, create: Create, faults: Faults) -> None:
    machine = create(python(FOREVER, stop_config={"signal": "SIGTERM"}))
    up(emulator, machine)
    faults.migrate(machine.id)
    up(emulator, machine, times=2)
    found = client.get(machine.id)
    assert found.id == machine.id
    assert ("launch", "flyd") in [(event.type, event.source) for event in found.events]


def test_a_machine_runs_out_of_memory_now(
    emulator: Emulator, client: MachinesClient, create: Create, faults: Faults
) -> None:
    machine = create(python(FOREVER))
    up(emulator, machine)
    faults.run_out_of_memory(machine.id)
    client.wait(machine.id, "stopped")
    event = client.get(machine.id).exit_event
    assert event is not None
    assert event.oom_killed
    with pytest.raises(FaultError, match="failed_precondition"):
        faults.run_out_of_memory(machine.id)
    for machine_name, words in (("no-such", "machine not found"), ("", "needs machine")):
        with pytest.raises(FaultError, match=words):
            faults.migrate(machine_name)


# The control API -----------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kind": "capcity"}, "there is no fault 'capcity', did you mean 'capacity'? Known: capacity, rate_limited"),
    ({}, "there is no fault None; Known: capacity"),
    ({"kind": ["hold"]}, "there is no fault"),
    ({"kind": "capacity", "shap": "x"}, "fault capacity takes no 'shap', did you mean 'shape'? Known: kind, action"),
    ({"kind": "capacity", "shape": "full"}, "shape must be one of: candidate, volume"),
    ({"kind": "capacity", "region": "moon"}, "region must be codes of regions"),
    ({"kind": "slow", "delay": "long"}, "delay must be a number of seconds from 0 to 86400"),
    ({"kind": "slow", "action": "crate"}, "there is no action 'crate', did you mean 'create'? Known: any"),
    ({"kind": "slow", "action": [7]}, "there is no action 7; Known: any"),
    ({"kind": "slow", "times": 0}, "times must be a whole number from 1"),
    ({"kind": "slow", "times": True}, "times must be a whole number"),
    ({"kind": "slow", "seconds": -1}, "seconds must be a number of seconds"),
    ({"kind": "slow", "name": 7}, "name must be a text"),
    ({"kind": "server_error", "status": 404}, "status must be a whole number from 500 to 599"),
    ({"kind": "freeze", "action": "create"}, "fault freeze takes no 'action'"),
]


@pytest.mark.parametrize(("body", "words"), WRONG, ids=[words[:60] for _, words in WRONG])
def test_a_fault_that_is_not_understood(http: httpx.Client, faults: Faults, body: dict[str, Any], words: str) -> None:
    answer = http.post("/_emulator/faults", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert faults.list() == []


def test_the_control_api_wants_the_token_and_is_met_by_no_fault(emulator: Emulator, faults: Faults) -> None:
    with pytest.raises(FaultError, match="token validation error"):
        Faults(emulator.url, "wrong").list()
    with faults.freeze(), faults.add("unauthorized"), faults.add("server_error", status=503) as fault:
        assert fault.id in [each.id for each in faults.list()]
    faults.clear()
    assert faults.list() == []
    fault.remove()
    with pytest.raises(FaultError, match="there is no fault 'f0'"):
        faults.call("GET", "/f0")
    with faults.add("empty_list") as empty, pytest.raises(FaultError, match="holds nothing"):
        faults.call("POST", f"/{empty.id}/release", {})


def test_what_there_is_can_be_asked(faults: Faults) -> None:
    told = faults.kinds()
    assert set(told["kinds"]) == set(KINDS)
    assert all(about["says"].endswith(".") for about in told["kinds"].values())
    assert {"create", "list", "get", "start", "stop", "destroy", "wait"} <= set(told["actions"])


def test_a_fault_lasts_for_its_seconds(client: MachinesClient, faults: Faults) -> None:
    fault = faults.add("server_error", seconds=0.3)
    with pytest.raises(errors.Unreachable):
        client.app()
    until(lambda: not fault.active)
    client.app()
    assert fault.fired == 1


def test_a_fault_meets_the_calls_of_its_scope_alone(client: MachinesClient, create: Create, faults: Faults) -> None:
    red, blue = create(python(""), name="red-1", skip_launch=True), create(python(""), region="cdg", skip_launch=True)
    with faults.add("server_error", "get", name="red-*") as fault:
        client.get(blue.id)
        client.list()
        with pytest.raises(errors.Unreachable):
            client.get(red.id)
        assert fault.fired == 1
    with faults.add("server_error", region="cdg") as fault:
        client.get(red.id)
        with pytest.raises(errors.Unreachable):
            client.get(blue.id)
    with faults.add("server_error", app="another"):
        client.app()


def test_two_faults_meet_one_call(http: httpx.Client, faults: Faults) -> None:
    slow, error = faults.add("slow", "app-get", delay=0.01), faults.add("server_error", "any", status=502)
    assert http.get("/v1/apps/shop").status_code == 502
    assert (slow.fired, error.fired) == (1, 1)


def test_what_fires_is_written_down(emulator: Emulator, client: MachinesClient, create: Create, faults: Faults) -> None:
    machine = create(python(""), skip_launch=True)
    with faults.add("rate_limited", "get", machine=machine.id) as fault, contextlib.suppress(errors.RateLimited):
        client.get(machine.id)
    [line] = [line for line in emulator.journal() if line["kind"] == "fault" and line["fault"] == fault.id]
    assert {key: line[key] for key in ("type", "action", "app", "machine", "name")} == {
        "type": "rate_limited",
        "action": "get",
        "app": "shop",
        "machine": machine.id,
        "name": machine.name,
    }


def test_waiting_for_what_does_not_happen(faults: Faults) -> None:
    with faults.add("slow") as fault, pytest.raises(FaultError, match=r"\(slow\) is not fired within 1 s: fired 0"):
        fault.wait(timeout=1)
