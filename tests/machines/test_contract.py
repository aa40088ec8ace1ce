"""What machinequeue relies on, asked of the emulator and, with a token, of Fly itself.

Every test runs against the emulator. With FLY_API_TOKEN and MQ_LIVE_FLY_APP in the environment each also runs against
that app, on the smallest machines, a few seconds each; MQ_LIVE_FLY_IMAGE names another image than busybox, and
FLY_API_HOSTNAME another address than the public one. What only a live run can settle is noted and shown at its end.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from machinequeue.machines import errors
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.schema import CreateRequest, Guest, LogPage, Machine
from machinequeue.machines.session import PUBLIC_URL, authorization, normal_base
from tests.machines.conftest import until

LIVE_APP, LIVE_TOKEN = os.environ.get("MQ_LIVE_FLY_APP", ""), os.environ.get("FLY_API_TOKEN", "")
LIVE_URL = normal_base(os.environ.get("FLY_API_HOSTNAME") or PUBLIC_URL)
IMAGE = os.environ.get("MQ_LIVE_FLY_IMAGE", "registry-1.docker.io/library/busybox:latest")
SMALLEST = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}
_numbers = itertools.count(1)


class Slowly:
    """The pace of one process: Fly's limit, and some room."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def reserve(self, app: str, action: str, longest: float) -> float:
        del app, longest
        now = time.monotonic()
        at = max(now, self._next.get(action, 0.0))
        self._next[action] = at + 1.1
        return at - now

    def refused(self, app: str, action: str, seconds: float) -> None:
        del app
        self._next[action] = time.monotonic() + seconds


SLOWLY = Slowly()


@dataclass
class Fly:
    """An API to try: the emulator or Fly."""

    client: MachinesClient
    http: httpx.Client
    app: str
    live: bool
    note: Callable[[str, object], None] = field(default=lambda what, seen: None)
    tag: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def machines(self) -> str:
        return f"/v1/apps/{self.app}/machines"

    def turn(self, action: str) -> None:
        """Wait until a bare create or list may be sent."""
        if self.live:
            time.sleep(SLOWLY.reserve(self.app, action, 60))

    def config(self, *command: str, **fields: Any) -> dict[str, Any]:
        metadata = {"mq_contract": self.tag, **fields.pop("metadata", {})}
        usual = {"image": IMAGE, "init": {"exec": [*command]}, "guest": SMALLEST, "restart": {"policy": "no"}}
        return {**usual, "metadata": metadata, **fields}

    def name(self) -> str:
        return f"mq-contract-{self.tag}-{next(_numbers)}"

    def create(self, *command: str, **fields: Any) -> Machine:
        options = {key: fields.pop(key) for key in ("skip_launch", "lease_ttl") if key in fields}
        name = fields.pop("name", None) or self.name()
        metadata = {"mq_machine": name, **fields.pop("metadata", {})}
        return self.client.create(
            CreateRequest(name, None, self.config(*command, metadata=metadata, **fields), **options)
        )

    def resting(self, **fields: Any) -> Machine:
        """A machine that was never started, and can be."""
        made = self.create("true", skip_launch=True, **fields)
        self.reach(made, "stopped")
        return made

    def running(self, script: str = "sleep 300", **fields: Any) -> Machine:
        """A machine whose script has begun, which "started" does not say."""
        mark = "touch /tmp/mq-contract-$FLY_MACHINE_ID; "
        made = self.create("sh", "-c", mark + script, **fields)
        self.reach(made, "started")
        self.until(lambda: self.run(made, "test", "-e", f"/tmp/mq-contract-{made.id}") == 0)
        return made

    def run(self, machine: Machine, *command: str) -> int | None:
        return self.client.exec(machine.id, command).exit_code

    def reach(self, machine: Machine, state: str, seconds: float = 120) -> None:
        """Wait for a state; who waits for the end and finds nothing has seen it."""
        deadline = time.monotonic() + (seconds if self.live else 15)
        while True:
            try:
                self.client.wait(machine.id, state, timeout=min(60, deadline - time.monotonic()))
                return
            except errors.NotFound:
                if state == "destroyed":
                    return
                # Just after the create it may mean "not visible yet".
                if not self.live or time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
            except errors.WaitTimeout:
                if time.monotonic() > deadline:
                    raise

    def ended(self, machine: Machine) -> Machine:
        """The machine once it is destroyed."""
        self.reach(machine, "destroyed")
        self.until(lambda: self.client.get(machine.id).state == "destroyed")
        return self.client.get(machine.id)

    def until(self, condition: Callable[[], Any]) -> Any:
        if not self.live:
            return until(condition)
        deadline = time.monotonic() + 60
        while not (value := condition()):
            assert time.monotonic() < deadline, condition
            time.sleep(1.0)  # Fly allows one call a second and machine
        return value


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    image = tmp_path_factory.mktemp("busybox")
    with Emulator(app="contract", images={IMAGE: image}, secrets={"ONE_SECRET": "x"}) as running:
        yield running


LIVE = pytest.param("fly", marks=[pytest.mark.fly, pytest.mark.timeout(600)])
ASKED = ["emulator", *([LIVE] if LIVE_APP and LIVE_TOKEN else [])]


@pytest.fixture(params=ASKED)
def fly(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[Fly]:
    live = request.param == "fly"
    emulated: Emulator | None = None if live else request.getfixturevalue("emulated")
    app, token, url = (emulated.app, emulated.token, emulated.url) if emulated else (LIVE_APP, LIVE_TOKEN, LIVE_URL)
    headers = {"Authorization": authorization(token)}
    with (
        MachinesClient(app, token=token, base_url=url, timeout=60, pace=SLOWLY if live else None) as client,
        httpx.Client(base_url=url, headers=headers, trust_env=live, timeout=90) as http,
    ):
        opened = Fly(client, http, app, live, lambda what, seen: record_property(f"{request.param} {what}", str(seen)))
        yield opened
        for machine in client.list({"mq_contract": opened.tag}):
            client.destroy(machine.id, force=True)
        if not live:
            for left in Path("/tmp").glob("mq-contract-*"):
                left.unlink(missing_ok=True)


@pytest.mark.fly
@pytest.mark.skipif(LIVE in ASKED, reason="it is asked")
def test_fly_itself_is_asked_too() -> None:
    pytest.skip("only the emulator was asked; FLY_API_TOKEN and MQ_LIVE_FLY_APP have Fly asked the same")


# From create to the end -----------------------------------------------------------------------------------------------


def test_from_created_over_started_to_destroyed_with_an_exit_code(fly: Fly) -> None:
    made = fly.create("sh", "-c", f"sleep {5 if fly.live else 0.3}; exit 3", auto_destroy=True)
    assert made.state in ("created", "starting", "started")
    assert made.region
    assert made.request_id
    fly.reach(made, "started")
    ended = fly.ended(made)
    assert ended.exit_event is not None
    assert (ended.exit_event.exit_code, ended.exit_event.requested_stop, ended.exit_event.oom_killed) == (
        3,
        False,
        False,
    )
    rows = fly.http.get(f"{fly.machines}/{made.id}/events").json()
    times = [row["timestamp"] for row in rows]
    assert times == sorted(times, reverse=True)
    exits = [row for row in rows if row["type"] == "exit"]
    assert len(exits) == 1
    fly.note("exit event of exit 3", exits[0])
    fly.note("types of events", [f"{row['type']}/{row['status']}/{row['source']}" for row in rows])


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("false", 1)])
def test_auto_destroy_follows_any_exit(fly: Fly, command: str, code: int) -> None:
    ended = fly.ended(fly.create("sh", "-c", command, auto_destroy=True))
    assert ended.exit_event is not None
    assert ended.exit_event.exit_code == code


def test_without_auto_destroy_it_rests(fly: Fly) -> None:
    made = fly.create("true")
    fly.reach(made, "stopped")
    fly.until(lambda: fly.client.get(made.id).exit_event)
    assert fly.client.get(made.id).state == "stopped"


def test_a_stop_is_a_sigterm_and_is_told_apart(fly: Fly) -> None:
    made = fly.running("trap 'exit 5' TERM; sleep 300 & wait")
    fly.client.stop(made.id, "SIGTERM", "10s")
    fly.reach(made, "stopped")
    event = fly.until(lambda: fly.client.get(made.id).exit_event)
    assert (event.exit_code, event.requested_stop) == (5, True)
    fly.note("exit event of a stop", event)


def test_a_destroyed_machine_is_readable_and_listed_only_on_demand(fly: Fly) -> None:
    made = fly.create("true", auto_destroy=True)
    fly.ended(made)
    assert made.id not in {machine.id for machine in fly.client.list({"mq_contract": fly.tag})}
    assert fly.client.events(made.id)
    with_filter = {machine.id for machine in fly.client.list({"mq_contract": fly.tag}, include_deleted=True)}
    fly.note("metadata filter with include_deleted finds the destroyed machine", made.id in with_filter)
    fly.note("metadata filter with include_deleted lets others through", len(with_filter - {made.id}))
    if not fly.live:
        assert made.id in with_filter


def test_without_a_launch_it_is_prepared_and_waits_for_its_start(fly: Fly) -> None:
    made = fly.create("sleep", "300", skip_launch=True)
    fly.reach(made, "stopped")
    assert fly.client.get(made.id).exit_event is None
    assert fly.client.start(made.id) == "stopped"
    fly.reach(made, "started")
    with pytest.raises(errors.Conflict):
        fly.client.start(made.id)


def test_a_forced_destroy_ends_what_runs_and_without_force_it_is_refused(fly: Fly) -> None:
    made = fly.create("sleep", "300")
    fly.reach(made, "started")
    with pytest.raises(errors.MachinesError) as caught:
        fly.client.destroy(made.id)
    assert not isinstance(caught.value, errors.Ambiguous)
    fly.note("destroy without force", caught.value)
    fly.client.destroy(made.id, force=True)
    fly.ended(made)
    fly.client.destroy(made.id, force=True)


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_name_belongs_to_one_live_machine_and_is_free_after_it(fly: Fly) -> None:
    made = fly.resting()
    fly.turn("create")
    answer = fly.http.post(fly.machines, json={"name": made.name, "config": fly.config("true")})
    assert answer.status_code == 409
    assert made.id in answer.json()["error"]
    fly.note("text of a taken name", answer.text)
    again = CreateRequest(made.name, None, fly.config("true", metadata={"mq_machine": made.name}))
    assert fly.client.create(again).id == made.id
    with pytest.raises(errors.NameTaken) as caught:
        fly.create("true", name=made.name, metadata={"mq_machine": "of-another"})
    assert caught.value.machine_id == made.id
    fly.client.destroy(made.id, force=True)
    fly.ended(made)
    assert fly.create("true", name=made.name, skip_launch=True).id != made.id


# Metadata and lists ---------------------------------------------------------------------------------------------------


def test_metadata_changes_without_a_restart_and_filters_lists(fly: Fly) -> None:
    made = fly.running()
    version = fly.client.get(made.id).instance_id
    fly.client.set_metadata(made.id, "mq_color", "red")
    fly.client.merge_metadata(made.id, {"mq_size": "s", "mq_color": None}, instance_id=version)
    found = fly.client.metadata(made.id)
    assert found["mq_size"] == "s"
    assert "mq_color" not in found
    fly.until(lambda: [each.id for each in fly.client.list({"mq_contract": fly.tag, "mq_size": "s"})] == [made.id])
    assert fly.client.list({"mq_contract": fly.tag, "mq_size": "m"}) == []
    with pytest.raises(errors.Conflict) as caught:
        fly.client.merge_metadata(made.id, {"mq_size": "m"}, instance_id="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert caught.value.status == 412
    fly.client.delete_metadata(made.id, "mq_size")
    after = fly.client.get(made.id)
    assert (after.instance_id, after.state) == (version, "started")
    assert [event.type for event in after.events].count("start") == 1


def test_a_list_comes_in_pages_and_with_filters(fly: Fly) -> None:
    made = {fly.resting().id for _ in range(3)}
    params: dict[str, str] = {"metadata.mq_contract": fly.tag, "limit": "2"}
    found: list[str] = []
    for _ in range(10):
        fly.turn("list")
        page = fly.http.get(fly.machines, params=params)
        assert len(page.json()) <= 2
        found += [row["id"] for row in page.json()]
        if not page.headers.get("fly-next-cursor"):
            break
        params["cursor"] = page.headers["fly-next-cursor"]
    assert sorted(found) == sorted(made)
    mine = {"mq_contract": fly.tag}
    assert {each.id for each in fly.client.list(mine, states=["stopped"])} == made
    assert fly.client.list(mine, states=["started"]) == []
    region = fly.client.get(min(made)).region
    assert {each.id for each in fly.client.list(mine, region=region)} == made


def test_how_soon_a_list_shows_what_was_created(fly: Fly) -> None:
    made = fly.create("true", skip_launch=True)
    since = time.monotonic()
    fly.until(lambda: made.id in {each.id for each in fly.client.list({"mq_contract": fly.tag})})
    fly.note("seconds until the list shows a new machine", round(time.monotonic() - since, 2))


# Waits and what is not there ------------------------------------------------------------------------------------------


def test_a_wait_ends_with_408_and_lasts_a_minute_at_most(fly: Fly) -> None:
    made = fly.resting()
    with pytest.raises(errors.WaitTimeout) as caught:
        fly.client.wait(made.id, "started", timeout=1)
    assert caught.value.status == 408
    fly.note("text of a wait that ended", caught.value)
    other = fly.resting()  # Fly allows one wait a second and machine
    assert fly.client.wait(other.id, "settled", timeout=5) == "stopped"
    answer = fly.http.get(f"{fly.machines}/{other.id}/wait", params={"state": "started", "timeout": "90"})
    fly.note("wait of 90 s", answer.text)
    assert answer.status_code == 400


def test_what_is_not_there_is_404_in_words_or_in_plain_text(fly: Fly) -> None:
    with pytest.raises(errors.NotFound) as caught:
        fly.client.get("00000000000000")
    fly.note("text of an unknown machine", caught.value)
    unrouted = fly.http.get("/v1/there-is-no-such-path")
    assert (unrouted.status_code, unrouted.text) == (404, "404 page not found\n")
    nameless = httpx.get(f"{str(fly.http.base_url).rstrip('/')}/v1/apps/{fly.app}/machines", trust_env=fly.live)
    assert nameless.status_code == 401
    assert nameless.headers["fly-request-id"]
    fly.note("text without a token", nameless.text)


# Leases and versions --------------------------------------------------------------------------------------------------


def test_a_lease_keeps_others_out_and_its_nonce_lets_in(fly: Fly) -> None:
    made = fly.resting()
    assert fly.client.lease(made.id) is None
    lease = fly.client.acquire_lease(made.id, 60, "contract")
    assert lease.nonce
    assert lease.expires_at > time.time()
    with pytest.raises(errors.LeaseHeld) as caught:
        fly.client.start(made.id)
    fly.note("text of a held lease", caught.value)
    with pytest.raises(errors.LeaseHeld):
        fly.client.acquire_lease(made.id, 60)
    seen = fly.client.lease(made.id)
    assert seen is not None
    assert fly.client.refresh_lease(made.id, lease, 120).nonce == lease.nonce
    assert fly.client.start(made.id, lease=lease) == "stopped"
    fly.client.release_lease(made.id, lease)
    assert fly.client.lease(made.id) is None


def test_a_create_may_take_the_lease_at_once(fly: Fly) -> None:
    made = fly.create("true", skip_launch=True, lease_ttl=60)
    assert made.lease is not None
    fly.reach(made, "stopped")
    with pytest.raises(errors.LeaseHeld):
        fly.client.start(made.id)
    fly.client.destroy(made.id, force=True, lease=made.lease)


def test_an_update_is_a_new_version_of_the_whole_config(fly: Fly) -> None:
    made = fly.resting(metadata={"mq_color": "red"})
    before = fly.client.get(made.id)
    config = fly.config("sleep", "300", metadata={"mq_size": "s"})
    after = fly.client.update(made.id, config, current_version=before.instance_id, skip_launch=True)
    assert after.id == made.id
    assert after.instance_id != before.instance_id
    assert "mq_color" not in after.metadata
    assert after.metadata["mq_size"] == "s"
    with pytest.raises(errors.Conflict):
        fly.client.update(made.id, config, current_version=before.instance_id, skip_launch=True)


def test_a_command_in_a_machine_may_fail_without_failing_the_call(fly: Fly) -> None:
    made = fly.running()
    done = fly.client.exec(made.id, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 3)
    assert fly.client.exec(made.id, ["cat"], stdin="handed in").stdout == "handed in"


# Refusals -------------------------------------------------------------------------------------------------------------


def test_an_unknown_image_is_refused_as_such(fly: Fly) -> None:
    with pytest.raises(errors.ImageNotFound) as caught:
        fly.create("true", image=f"registry.fly.io/{fly.app}:there-is-no-such-tag")
    assert caught.value.retryable
    fly.note("text of an unknown image", caught.value)


def test_an_impossible_guest_is_refused_for_good(fly: Fly) -> None:
    with pytest.raises(errors.Rejected) as caught:
        fly.create("true", guest={"cpu_kind": "performance", "cpus": 8, "memory_mb": 8192})
    assert not caught.value.retryable
    fly.note("text of an impossible guest", caught.value)


def test_regions_have_codes(fly: Fly) -> None:
    regions = {region.code: region for region in fly.client.regions()}
    assert regions["iad"].name


def test_the_token_says_which_apps_it_is_for(fly: Fly) -> None:
    parts = fly.client.current_token()
    assert parts
    assert all(not part.apps or fly.app in part.apps for part in parts)


def test_app_and_names_of_secrets_can_be_read(fly: Fly) -> None:
    assert fly.client.app()["name"] == fly.app
    names = fly.client.secrets()
    assert all(isinstance(name, str) for name in names)
    if not fly.live:
        assert names == ["ONE_SECRET"]


def test_places_can_be_asked_for_without_taking_them(fly: Fly) -> None:
    org = fly.client.app().get("organization", {}).get("slug") or "personal"
    places = fly.client.placements(org, Guest("shared", 1, 256), region="iad", count=1)
    assert all(place.region for place in places)
    fly.note("placements of one machine in iad", places)


def test_too_many_calls_are_told_to_slow_down(fly: Fly, tmp_path: Path) -> None:
    def first_429(http: httpx.Client, machines: str) -> httpx.Response:
        for _ in range(40):
            answer = http.get(machines, params={"metadata.mq_contract": fly.tag})
            if answer.status_code == 429:
                return answer
        raise AssertionError("40 lists in a row were answered")

    if fly.live:
        answer = first_429(fly.http, fly.machines)
        time.sleep(3)  # the others of this run want to be answered again
    else:
        with Emulator(app="contract", images={IMAGE: tmp_path}, rate_limits=True) as limited:
            headers = {"Authorization": f"Bearer {limited.token}"}
            with httpx.Client(base_url=limited.url, headers=headers, trust_env=False) as http:
                answer = first_429(http, fly.machines)
    assert "rate limit exceeded" in answer.text
    fly.note("body of a 429", answer.text)
    fly.note("headers of a 429", dict(answer.headers))
    fly.note("Retry-After", answer.headers.get("retry-after", "none"))


# What only a live run can settle --------------------------------------------------------------------------------------


def test_out_of_memory_is_in_the_exit_event(fly: Fly) -> None:
    # The reader of the pipe never reads, so dd keeps all that it took, and is the main process.
    script = (
        "f=/tmp/mq-contract-fifo-$FLY_MACHINE_ID; mkfifo $f; sleep 60 <$f & "
        "exec dd if=/dev/zero of=$f bs=400M count=1 2>/dev/null"
    )
    made = fly.create("sh", "-c", script, auto_destroy=True)
    ended = fly.ended(made)
    fly.note("exit event of out of memory, in full", [dict(event.raw) for event in ended.events if event.exit])
    assert ended.exit_event is not None
    assert ended.exit_event.oom_killed


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("env of 64 kB", {"env": {"BIG": "x" * 65_536}}),
        ("env of 256 kB", {"env": {f"BIG{n}": "x" * 65_536 for n in range(4)}}),
        ("a metadata value of 1 kB", {"metadata": {"big": "x" * 1_024}}),
        ("a metadata value of 16 kB", {"metadata": {"big": "x" * 16_384}}),
        ("100 metadata keys", {"metadata": {f"key{n}": "x" for n in range(100)}}),
        ("a name of 63", {"name": "n" * 63}),
        ("a name of 255", {"name": "n" * 255}),
        ("a name with capitals and dots", {"name": "A.b_C"}),
    ],
)
def test_how_much_a_create_may_carry(fly: Fly, what: str, fields: dict[str, Any]) -> None:
    try:
        made = fly.create("true", skip_launch=True, **fields)
    except errors.Rejected as error:
        fly.note(what, error)
    else:
        fly.note(what, "accepted")
        fly.client.destroy(made.id, force=True)


def test_what_this_token_may_read_beside_its_app(fly: Fly) -> None:
    org = fly.client.app().get("organization", {}).get("slug") or "personal"
    asked: dict[str, Callable[[], object]] = {
        "logs": lambda: f"{len(next(fly.client.logs(), LogPage(())).lines)} lines",
        "machines of the organisation": lambda: len(fly.client.org_machines(org).machines),
    }
    for what, ask in asked.items():
        try:
            fly.note(f"this token on {what}", ask())
        except (errors.Unauthorized, errors.NotFound, errors.Rejected) as error:
            fly.note(f"this token on {what}", error)
