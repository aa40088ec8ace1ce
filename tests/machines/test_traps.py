"""The traps of the Machines API that its client, or what it is asked for, must survive: one by one, over real HTTP.

Each test falls into its trap on an emulator that misbehaves as Fly does, and says what then holds. What follows for
rows and runs is with the tests of the dispatcher and the reconciler.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.db.models.functions import Now

from machinequeue import conf
from machinequeue.dispatch.launch import Launcher, site
from machinequeue.machines import errors
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.emulator.remote_faults import Faults
from machinequeue.machines.schema import CreateRequest, ExitEvent, Machine
from machinequeue.models import Machine as Row
from tests.machines.conftest import IMAGE, Create, python, until

FOREVER = "import signal; print('up', flush=True); signal.pause()"
_numbers = itertools.count(1)


@pytest.fixture
def hasty(emulator: Emulator) -> Iterator[MachinesClient]:
    """A client that waits a second for an answer."""
    with emulator.client(timeout=1, read_tries=1) as opened:
        yield opened


def request(code: str = "raise SystemExit(0)", **fields: Any) -> CreateRequest:
    """A create as the dispatcher makes it: known by its name and its metadata."""
    name = f"trap-{next(_numbers)}"
    config = python(code, metadata={"mq_machine": name, **fields.pop("metadata", {})}, **fields.pop("config", {}))
    return CreateRequest(name, fields.pop("region", None), config, **{"skip_launch": True, **fields})


def every(client: MachinesClient, asked: CreateRequest) -> list[Machine]:
    """Each machine that there ever was for a request."""
    return client.list({"mq_machine": asked.name}, include_deleted=True)


def up(emulator: Emulator, machine: Machine, times: int = 1) -> None:
    """Wait until a machine that says so runs its code for the so-manieth time."""
    until(lambda: emulator.output(machine.id).count("up\n") >= times)


def exit_of(client: MachinesClient, machine: Machine) -> ExitEvent:
    return until(lambda: client.get(machine.id).exit_event)  # type: ignore[no-any-return]


# A create, and whether it happened ------------------------------------------------------------------------------------

LOST: list[tuple[str, dict[str, Any]]] = [
    ("lose_answer", {}),
    ("reset", {"when": "after"}),
    ("timed_out", {}),
    ("server_error", {"status": 504, "when": "after", "times": 1}),
    ("server_error", {"status": 502, "when": "after", "times": 1, "body": "html"}),
    ("broken_body", {"shape": "cut"}),
]


@pytest.mark.parametrize(("kind", "terms"), LOST, ids=[f"{kind} {terms}" for kind, terms in LOST])
def test_trap_ambiguous_create_is_looked_up_before_it_is_repeated(
    patient: MachinesClient, faults: Faults, emulator: Emulator, kind: str, terms: dict[str, Any]
) -> None:
    asked = request()
    fault = faults.add(kind, "create", **terms)
    made = patient.create(asked)
    assert fault.fired == 1
    assert [machine.id for machine in every(patient, asked)] == [made.id]
    creates = [line for line in emulator.journal() if line["kind"] == "request" and line.get("name") == asked.name]
    assert len(creates) <= 1, "it was found by looking, not by asking again"
    patient.destroy(made.id, force=True)


def test_trap_a_create_whose_answer_never_comes_is_looked_up(
    hasty: MachinesClient, client: MachinesClient, faults: Faults
) -> None:
    asked = request()
    hold = faults.hold("create")
    made = hasty.create(asked)
    assert [machine.id for machine in every(client, asked)] == [made.id]
    hold.release(drop=True)
    client.destroy(made.id, force=True)


def test_trap_ambiguous_create_that_did_not_happen_is_repeated_under_its_name(
    patient: MachinesClient, faults: Faults
) -> None:
    asked = request()
    with faults.add("server_error", "create", status=503, times=2) as fault:
        made = patient.create(asked)
        assert fault.fired == 2
    assert [machine.name for machine in every(patient, asked)] == [asked.name]
    patient.destroy(made.id, force=True)


def test_trap_a_refusal_after_a_lost_answer_does_not_mean_that_nothing_was_created(
    emulator: Emulator, client: MachinesClient, faults: Faults
) -> None:
    asked = request()
    faults.add("lose_answer", "create")
    faults.add("empty_list")
    # From the client's first pause on, which is after the answer that got lost, creates are refused.
    limited = emulator.client(pause=lambda seconds: faults.add("rate_limited", "create"))
    with limited, pytest.raises(errors.Ambiguous):
        limited.create(asked)
    faults.clear()
    made = every(client, asked)
    assert len(made) == 1, "to call it refused would have leaked this machine"
    assert client.create(asked).id == made[0].id
    client.destroy(made[0].id, force=True)


@pytest.mark.parametrize("lie", ["empty_list", "stale_list"])
def test_trap_empty_or_stale_list_is_not_absence(patient: MachinesClient, faults: Faults, lie: str) -> None:
    asked = request()
    faults.add(lie)
    faults.add("lose_answer", "create")
    made = patient.create(asked)
    assert patient.list({"mq_machine": asked.name}) == []
    assert patient.get(made.id).name == asked.name, "asked by its id, it is there"
    faults.clear()
    assert [machine.id for machine in every(patient, asked)] == [made.id], "and it was made once"
    patient.destroy(made.id, force=True)


def test_trap_not_found_just_after_the_create_means_not_yet(patient: MachinesClient, faults: Faults) -> None:
    asked = request()
    with faults.add("not_visible"):
        made = patient.create(asked)
        with pytest.raises(errors.NotFound) as caught:
            patient.get(made.id)
        assert "a moment ago" in caught.value.advice
        # Its name is taken by a machine that nobody can read: that is no foreign one, and no absence.
        faults.add("empty_list")
        with pytest.raises(errors.Ambiguous, match="could not be read"):
            patient.create(asked)
    faults.clear()
    assert [machine.id for machine in every(patient, asked)] == [made.id]
    patient.destroy(made.id, force=True)


def test_trap_one_create_a_second_and_a_429_that_does_not_say_how_long() -> None:
    with Emulator(app="shop", images={IMAGE: "."}, rate_limits=True) as limited, limited.client() as client:
        with pytest.raises(errors.RateLimited) as caught:
            for _ in range(10):
                client.create(request())
        assert (caught.value.retry_after, caught.value.retryable) == (None, True)
        assert len(client.list()) == 3


# What a machine does that nobody asked for ----------------------------------------------------------------------------


def test_trap_omitted_restart_policy_restarts_ten_times(client: MachinesClient, create: Create) -> None:
    config = python("raise SystemExit(1)")
    del config["restart"]
    made = create(config)
    until(lambda: [event.type for event in client.events(made.id)].count("start") > 1)
    again = create(python("raise SystemExit(1)", restart={"policy": "no"}))
    client.wait(again.id, "stopped")
    assert [event.type for event in client.events(again.id)].count("start") == 1


def test_trap_late_start_is_prevented_by_destroying_even_what_was_only_created(
    emulator: Emulator, client: MachinesClient, faults: Faults
) -> None:
    fault = faults.add("late_boot", delay=1.0)
    given_up, waited_for = (client.create(request(FOREVER, skip_launch=False)) for _ in range(2))
    assert fault.fired == 2
    assert client.get(given_up.id).state == "created"
    client.destroy(given_up.id, force=True)
    up(emulator, waited_for)  # hours later, on Fly
    client.destroy(waited_for.id, force=True)
    assert "up" not in emulator.output(given_up.id)
    assert client.get(given_up.id).state == "destroyed"


def test_trap_same_command_runs_twice_in_one_machine_that_migrates(
    emulator: Emulator, client: MachinesClient, create: Create, faults: Faults
) -> None:
    made = create(python(FOREVER))
    up(emulator, made)
    faults.migrate(made.id)
    up(emulator, made, times=2)
    until(lambda: client.get(made.id).state == "started")
    moved = client.get(made.id)
    assert (moved.id, moved.instance_id) == (made.id, client.get(made.id).instance_id)
    assert moved.private_ip != made.private_ip
    assert ("launch", "created", "flyd") in {(event.type, event.status, event.source) for event in moved.events}


def test_trap_exit_is_not_outcome_but_explains_a_death(
    emulator: Emulator, client: MachinesClient, create: Create, faults: Faults
) -> None:
    fine, crashed, stopped, short = (
        create(python(code)) for code in ("raise SystemExit(0)", "raise SystemExit(3)", FOREVER, FOREVER)
    )
    for machine in (stopped, short):
        up(emulator, machine)
    client.stop(stopped.id, "SIGTERM", "5s")
    faults.run_out_of_memory(short.id)
    seen = [exit_of(client, machine) for machine in (fine, crashed, stopped, short)]
    assert [event.exit_code for event in seen[:2]] == [0, 3]
    assert [event.requested_stop for event in seen] == [False, False, True, False]
    assert [event.oom_killed for event in seen] == [False, False, False, True]


def test_trap_machine_gone_before_you_look(client: MachinesClient, create: Create) -> None:
    made = create(python("raise SystemExit(7)", auto_destroy=True))
    client.wait(made.id, "destroyed")
    with pytest.raises(errors.NotFound):
        client.wait(made.id, "stopped", timeout=1)
    assert client.list({"mq_machine": made.name}) == []
    after = client.get(made.id)
    assert (after.state, exit_of(client, made).exit_code) == ("destroyed", 7)


def test_trap_started_is_not_running_your_code(client: MachinesClient, create: Create, faults: Faults) -> None:
    made = create(python(FOREVER, metadata={"mq_machine": "unreachable"}))
    client.wait(made.id, "started")
    with faults.vanish(made.id):
        lost = client.get(made.id)
        assert (lost.state, lost.host_status) == ("started", "unreachable")
        # Of the config there is only a part: fit to know the machine by, unfit to be cloned.
        assert (lost.config, lost.metadata["mq_machine"]) == (None, "unreachable")


def test_trap_stop_grace_is_five_seconds_and_sigint_unless_the_config_says_more(
    emulator: Emulator, client: MachinesClient, create: Create
) -> None:
    code = "import signal\nfor s in (2, 15): signal.signal(s, lambda n, f: (print('got', n, flush=True), exit(n)))\n"
    plain = create(python(code + FOREVER))
    asked = create(python(code + FOREVER, stop_config={"signal": "SIGTERM", "timeout": "30s"}))
    for machine in (plain, asked):
        up(emulator, machine)
        httpx.post(
            f"{emulator.url}/v1/apps/{emulator.app}/machines/{machine.id}/stop",
            headers={"Authorization": f"Bearer {emulator.token}"},
            trust_env=False,
        ).raise_for_status()
    assert [exit_of(client, machine).exit_code for machine in (plain, asked)] == [2, 15]


def test_trap_a_held_lease_makes_stop_and_destroy_hang(
    client: MachinesClient, hasty: MachinesClient, create: Create
) -> None:
    made = create(python(FOREVER))
    client.wait(made.id, "started")
    lease = client.acquire_lease(made.id, 60, "a deploy")
    for refused in (
        lambda: client.update(made.id, python(FOREVER)),
        lambda: client.start(made.id),
        lambda: client.acquire_lease(made.id, 60),
    ):
        with pytest.raises(errors.LeaseHeld):
            refused()
    for hanging in (lambda: hasty.stop(made.id), lambda: hasty.destroy(made.id, force=True)):
        since = time.monotonic()
        with pytest.raises(errors.Ambiguous):
            hanging()
        assert time.monotonic() - since < 5, "it hangs for as long as the client's timeout, not as the lease"
    client.destroy(made.id, force=True, lease=lease)
    until(lambda: client.get(made.id).state == "destroyed")


# What answers look like -----------------------------------------------------------------------------------------------


def test_trap_wait_lasts_a_minute_at_most_and_408_is_normal(client: MachinesClient) -> None:
    made = client.create(request())
    client.wait(made.id, "stopped")
    with pytest.raises(errors.WaitTimeout) as caught:
        client.wait(made.id, "started", timeout=1)
    assert (caught.value.status, caught.value.retryable) == (408, True)
    done: list[str] = []
    waiting = threading.Thread(target=lambda: done.append(client.wait(made.id, "started", timeout=3600)))
    waiting.start()  # asked for an hour, Fly would answer 400
    client.start(made.id)
    waiting.join(60)
    assert done == ["started"]
    client.destroy(made.id, force=True)


def test_trap_many_machines_are_watched_by_one_list_and_not_by_many_waits(
    emulator: Emulator, client: MachinesClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machinequeue.machines.client.PAGE_SIZE", 3)
    made = [client.create(request(metadata={"mq_site": "many"})) for _ in range(7)]
    client.destroy(made[0].id, force=True)
    assert {each.id for each in client.list({"mq_site": "many"})} == {each.id for each in made[1:]}
    for each in made:
        client.destroy(each.id, force=True)


CAPACITY = ("candidate", "memory", "cpus", "resources", "reserve", "no_capacity", "no_capacity_400", "governor")


@pytest.mark.parametrize("shape", [*CAPACITY, "deploys_disabled", "volume"])
def test_trap_capacity_comes_with_many_statuses_and_is_no_bad_config(
    client: MachinesClient, faults: Faults, shape: str
) -> None:
    with faults.add("capacity", shape=shape, times=1), pytest.raises(errors.NoCapacity) as full:
        client.create(request())
    assert full.value.retryable
    assert full.value.scope in ("region", "host")
    with pytest.raises(errors.Rejected) as wrong:
        client.create(request(config={"guest": {"cpu_kind": "performance", "cpus": 8, "memory_mb": 8192}}))
    assert not wrong.value.retryable


@pytest.mark.parametrize("shape", ["quota", "machine_limit"])
def test_trap_limits_of_the_organisation_are_for_the_operator(
    client: MachinesClient, faults: Faults, shape: str
) -> None:
    with faults.add("capacity", shape=shape), pytest.raises(errors.QuotaReached) as caught:
        client.create(request())
    assert not caught.value.retryable
    assert "billing@fly.io" in caught.value.advice


def test_trap_image_is_unknown_for_a_moment_after_its_push(client: MachinesClient, faults: Faults) -> None:
    asked = request()
    with faults.add("manifest_unknown", image=IMAGE, times=1), pytest.raises(errors.ImageNotFound) as caught:
        client.create(asked)
    assert caught.value.retryable
    made = client.create(asked)
    pinned = client.create(request(config={"image": f"{IMAGE.rpartition(':')[0]}@{made.image_digest}"}))
    assert pinned.image_digest == made.image_digest
    for each in (made, pinned):
        client.destroy(each.id, force=True)


@pytest.mark.parametrize("body", ["json", "html", "plain", "empty"])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, errors.Rejected),
        (401, errors.Unauthorized),
        (403, errors.Unauthorized),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (412, errors.Conflict),
        (422, errors.Rejected),
        (429, errors.RateLimited),
        (503, errors.Unreachable),
    ],
)
def test_trap_bodies_lie_and_statuses_are_read_all_the_same(
    client: MachinesClient, faults: Faults, body: str, status: int, error: type[errors.MachinesError]
) -> None:
    with faults.add("answer", "get", status=status, body=body, text="some words"), pytest.raises(error) as caught:
        client.get("00000000000000")
    assert (caught.value.status, "<" in str(caught.value.message)) == (status, False)
    assert caught.value.request_id


@pytest.mark.parametrize("key", ["Regions", "regions"])
def test_trap_regions_are_spelled_in_two_ways(client: MachinesClient, faults: Faults, key: str) -> None:
    with faults.add("regions_key", key=key):
        assert "iad" in {region.code for region in client.regions()}


def test_trap_half_a_body_is_no_machine(patient: MachinesClient, faults: Faults) -> None:
    made = patient.create(request())
    with faults.add("broken_body", "get", shape="cut") as fault:
        assert patient.get(made.id).name == made.name
        assert fault.fired == 1
    patient.destroy(made.id, force=True)


def test_trap_logs_are_kept_after_the_end_and_may_be_refused(
    client: MachinesClient, create: Create, faults: Faults
) -> None:
    made = create(python("print('last words')", auto_destroy=True))
    client.wait(made.id, "destroyed")
    lines = [line for page in client.logs(made.id) for line in page.lines]
    assert "last words" in [line.message for line in lines if line.provider == "app"]
    assert any("exited with code: 0" in line.message for line in lines if line.provider == "runner")
    for status in (401, 403):
        with faults.add("answer", "logs", status=status), pytest.raises(errors.LogsRefused) as caught:
            [*client.logs(made.id)]
        assert "token" in caught.value.advice


# What is left behind --------------------------------------------------------------------------------------------------


def test_trap_orphans_that_never_started_are_found_by_metadata_and_destroyed(
    client: MachinesClient, faults: Faults
) -> None:
    faults.add("late_boot", delay=30)
    orphans = [
        client.create(request(metadata={"mq_site": "orphans"})),
        client.create(request(skip_launch=False, metadata={"mq_site": "orphans"})),
    ]
    found = client.list({"mq_site": "orphans"})
    assert {machine.id for machine in found} == {machine.id for machine in orphans}
    for _ in range(2):  # the second time it is 404, which is what was wanted
        for machine in found:
            client.destroy(machine.id, force=True)
    assert client.list({"mq_site": "orphans"}) == []


# What the dispatcher asks for -----------------------------------------------------------------------------------------


@pytest.fixture
def launched(emulator: Emulator, client: MachinesClient, settings: Any, db: None) -> Iterator[Callable[[], Any]]:
    """The config of a machine that the dispatcher launched, as the API has it."""
    settings.MACHINEQUEUE = {"APP": "shop", "API_TOKEN": emulator.token, "API_URL": emulator.url, "IMAGE": IMAGE}
    rows: list[Row] = []

    def launch() -> Any:
        row = Row.objects.create(
            name=f"mq-trap-{next(_numbers)}",
            app="shop",
            image=IMAGE,
            backend="default",
            queue="default",
            spec={"cpu_kind": "shared", "cpus": 1, "memory_mb": 256, "regions": []},
            spec_key="k",
            deadline_at=Now() + timedelta(hours=1),
        )
        rows.append(row)
        launcher = Launcher(client, base={"FROM_FLY_TOML": "a value of [env]", "FLY_API_TOKEN": "never"})
        assert launcher.launch(row)
        row.refresh_from_db()
        return client.get(row.fly_id).config

    yield launch
    for row in rows:
        client.destroy(row.fly_id, force=True)


def test_trap_restart_stop_and_end_are_always_said(launched: Callable[[], Any]) -> None:
    config = launched()
    assert config["restart"] == {"policy": "no"}
    assert config["auto_destroy"] is True
    assert config["stop_config"] == {"signal": "SIGTERM", "timeout": f"{conf.GRACE_SECONDS}s"}
    assert conf.GRACE_SECONDS <= 300


def test_trap_a_deploy_must_not_touch_what_the_queue_runs(launched: Callable[[], Any]) -> None:
    config = launched()
    assert not {key for key in config["metadata"] if key.startswith("fly_")} - {"fly_process_group"}
    assert config["metadata"]["fly_process_group"] == config["env"]["FLY_PROCESS_GROUP"] == "machinequeue"
    assert not config.get("services")
    assert config["dns"] == {"skip_registration": True}


def test_trap_fly_knows_no_longest_life_so_the_deadline_is_in_the_metadata(launched: Callable[[], Any]) -> None:
    metadata = launched()["metadata"]
    life = int(metadata["mq_deadline"]) - time.time()
    assert 0 < life <= conf.policy("default", "default").machine_life
    assert metadata["mq_site"] == site(), "so that a sweep finds it without a row"


def test_trap_env_is_not_inherited_and_secrets_are(emulator: Emulator, launched: Callable[[], Any]) -> None:
    env = launched()["env"]
    assert env["DJANGO_SETTINGS_MODULE"] == os.environ["DJANGO_SETTINGS_MODULE"]
    assert env["FROM_FLY_TOML"] == "a value of [env]"
    assert "FLY_API_TOKEN" not in env
    assert emulator.token not in env.values()
    assert "DATABASE_URL" not in env, "it is a secret of the app, and comes by itself"
