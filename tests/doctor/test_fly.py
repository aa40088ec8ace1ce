"""The app, the token, the image, regions and machines: each trouble is really made."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest
from django.db import connections

from machinequeue.dispatch.launch import site
from machinequeue.doctor.findings import Finding, Status
from machinequeue.doctor.fly import _seconds
from machinequeue.doctor.rounds import examine
from machinequeue.lifecycle import CircuitKind
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.schema import CreateRequest
from machinequeue.records import circuits, dispatchers
from tests.doctor.conftest import APP, IMAGE, Found
from tests.ports import closed_port

Clinic = Callable[..., None]
Only = Callable[[str], Finding]

pytestmark = pytest.mark.django_db(transaction=True)


class Office(BaseHTTPRequestHandler):
    """An API of another organisation: what it says of tokens and capacity is set by the test."""

    says: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self._answer()

    def _answer(self) -> None:
        body = json.dumps(self.says.get(self.path, {"name": APP, "organization": {"slug": "acme"}})).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        del args


@contextmanager
def office(**says: Any) -> Iterator[str]:
    paths = {"token": "/v1/tokens/current", "placements": "/v1/platform/placements"}
    handler = type("ThisOffice", (Office,), {"says": {paths[name]: body for name, body in says.items()}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


# App ------------------------------------------------------------------------------------------------------------------


def test_an_app_that_is_there(only: Only) -> None:
    assert only("app").status == Status.OK


def test_an_app_that_is_not_there(clinic: Clinic, only: Only) -> None:
    clinic(APP="shopp")
    found = only("app")
    assert (found.status, "no app shopp" in found.sentence) == (Status.FAILURE, True)
    assert "FLY_APP_NAME" in found.remedy


@pytest.mark.parametrize("kind", ["unauthorized", "forbidden"])
def test_a_token_that_does_not_open_the_app(emulator: Emulator, only: Only, kind: str) -> None:
    emulator.faults.add(kind)
    found = only("app")
    assert found.status == Status.FAILURE
    assert "does not open app shop" in found.sentence
    assert "fly tokens create deploy" in found.remedy


def test_an_api_that_is_away(clinic: Clinic, only: Only) -> None:
    clinic(API_URL=f"http://127.0.0.1:{closed_port()}")
    found = only("app")
    assert found.status == Status.FAILURE
    assert "does not answer" in found.sentence
    assert "mq_dev" in found.remedy
    for name in ("token", "regions", "drift", "leaks", "grace"):
        assert only(name) == Finding(Status.BLOCKED, "Not examined: mend `app` first.")


def test_an_api_that_hangs(emulator: Emulator, clinic: Clinic) -> None:
    hold = emulator.faults.freeze()
    found = {report.name: report.findings for report in examine(["app", "token", "drift"], seconds=3)}
    hold.release(drop=True)
    assert found["app"][0].status == Status.FAILURE
    for name in ("token", "drift"):
        assert found[name] == (Finding(Status.BLOCKED, "Not examined: mend `app` first."),)


# Token ----------------------------------------------------------------------------------------------------------------


def test_a_token_of_this_app(only: Only) -> None:
    found = only("token")
    assert (found.status, "app shop alone" in found.sentence) == (Status.OK, True)


def test_a_token_that_is_dead(emulator: Emulator, only: Only) -> None:
    emulator.faults.add("unauthorized")
    found = only("token")
    assert found.status == Status.FAILURE
    assert "does not accept the token" in found.sentence


@pytest.mark.parametrize(
    ("part", "status", "says"),
    [
        ({"apps": [APP], "user": "ada@example.com"}, Status.WARNING, "is a person's"),
        ({"apps": []}, Status.WARNING, "opens every app of acme"),
        ({"apps": ["other"]}, Status.FAILURE, "for app other, not for shop"),
        ({"apps": [APP], "restricted_to_machine": "148e21"}, Status.FAILURE, "good in machine 148e21 alone"),
        ({"apps": [APP, "other"]}, Status.OK, "other, shop"),
    ],
)
def test_what_a_token_allows(clinic: Clinic, found: Found, part: dict[str, Any], status: Status, says: str) -> None:
    with office(token={"tokens": [{"token_id": "1", "org_slug": "acme", **part}]}) as url:
        clinic(API_URL=url)
        first = found("token")[0]
    assert first.status == status
    assert says in first.sentence
    assert "ada@example.com" not in first.sentence


def test_what_fly_auth_token_prints_is_a_person_s(clinic: Clinic, only: Only) -> None:
    with office(token={"tokens": [{"token_id": "1", "org_slug": "acme", "apps": [APP]}]}) as url:
        clinic(API_URL=url, API_TOKEN="FlyV1 fm2_abcdefgh,fo1_abcdefgh")
        found = only("token")
    assert (found.status, "is a person's" in found.sentence) == (Status.WARNING, True)
    assert "fo1_" not in f"{found}"


# Image and release ----------------------------------------------------------------------------------------------------


def test_an_image_that_nobody_has_run_yet(only: Only) -> None:
    assert only("image").status == Status.SKIPPED


def test_an_image_that_the_registry_does_not_know(only: Only) -> None:
    circuits.failed(CircuitKind.IMAGE, "MANIFEST_UNKNOWN", image=IMAGE)
    found = only("image")
    assert (found.status, IMAGE in found.sentence) == (Status.FAILURE, True)


@pytest.mark.parametrize("image", ["registry.fly.io/shop:latest", "registry.fly.io:443/shop"])
def test_an_image_that_is_another_tomorrow(clinic: Clinic, only: Only, image: str) -> None:
    clinic(IMAGE=image, API_URL="https://api.machines.dev")
    found = only("image")
    assert (found.status, image in found.sentence) == (Status.WARNING, True)


def test_the_release_of_this_process(clinic: Clinic, only: Only) -> None:
    assert only("release").status == Status.SKIPPED
    dispatchers.announce(IMAGE, 3)
    assert only("release").status == Status.OK
    clinic(IMAGE="shop:2")
    found = only("release")
    assert (found.status, "shop:2" in found.sentence, "shop:1" in found.sentence) == (Status.WARNING, True, True)


# Regions --------------------------------------------------------------------------------------------------------------


def test_room_in_all_regions(only: Only) -> None:
    assert only("regions").status == Status.OK


def test_no_room(emulator: Emulator, found: Found) -> None:
    emulator.faults.add("capacity", "placements")
    for finding in found("regions"):
        assert finding.status == Status.FAILURE
        assert "no room for" in finding.sentence
        assert "regions" in finding.remedy


def test_too_little_room(clinic: Clinic, found: Found) -> None:
    with office(placements={"regions": [{"region": "iad", "count": 2}]}) as url:
        clinic(API_URL=url)
        first = found("regions")[0]
    assert first.status == Status.WARNING
    assert "room for 2 of" in first.sentence


def test_a_region_that_does_not_exist(settings: Any, clinic: Clinic, only: Only) -> None:
    settings.TASKS = {"default": {"BACKEND": "machinequeue.MachineBackend", "QUEUES": {"q": {"regions": ["atlantis"]}}}}
    found = only("regions")
    assert (found.status, "atlantis" in found.sentence) == (Status.FAILURE, True)


def test_a_token_that_may_not_ask_for_room(emulator: Emulator, found: Found) -> None:
    emulator.faults.add("forbidden", "placements")
    assert {finding.status for finding in found("regions")} <= {Status.SKIPPED}


# The app's machines ---------------------------------------------------------------------------------------------------

SECRET_VALUE = "a-value-that-must-stay-hidden"
STOP = {"signal": "SIGTERM", "timeout": "30s"}


@pytest.fixture
def machine(emulator: Emulator, clinic: Clinic) -> Callable[..., None]:
    """Make a machine of the app: `deployed` by fly.toml, or else a task machine."""

    def make(name: str, *, deployed: bool = False, kind: str = "", **config: Any) -> None:
        ours = {"mq_kind": kind, "mq_site": site(), "mq_machine": name, "fly_process_group": "machinequeue"}
        theirs = {"fly_platform_version": "v2", "fly_process_group": name}
        base = {
            "image": IMAGE,
            "init": {"cmd": ["true"]},
            "stop_config": STOP,
            "metadata": theirs if deployed else ours,
        }
        with emulator.client() as client:
            client.create(CreateRequest(name, None, {**base, **config}, skip_launch=True))

    return make


def test_machines_that_are_alike(machine: Callable[..., None], only: Only) -> None:
    env = {"DJANGO_SETTINGS_MODULE": "shop.settings", "GREETING": SECRET_VALUE}
    machine("web", deployed=True, env={**env, "FLY_PROCESS_GROUP": "web"})
    machine("dispatcher", deployed=True, env={**env, "FLY_PROCESS_GROUP": "dispatcher"})
    machine("mq-1", env={**env, "MACHINEQUEUE_MACHINE": "mq-1"})
    dispatchers.announce(IMAGE, 1)
    for name in ("drift", "leaks", "grace"):
        assert only(name).status == Status.OK


def test_machines_for_code_that_is_not_ours_have_nothing_of_the_app_on_purpose(
    clinic: Clinic, machine: Callable[..., None], only: Only
) -> None:
    env = {"GREETING": "hello", "WEB_ONLY": SECRET_VALUE}
    clinic(WITHHOLD_SECRETS=["WEB_ONLY"])
    machine("web", deployed=True, env=env)
    machine("mq-1", env={"GREETING": "hello"})
    machine("mq-2", kind="container", image="shop:2", stop_config={"signal": "SIGKILL", "timeout": "1s"})
    dispatchers.announce(IMAGE, 1)
    for name in ("drift", "grace"):
        assert only(name).status == Status.OK


def test_machines_whose_variables_differ(machine: Callable[..., None], found: Found) -> None:
    machine("web", deployed=True, env={"GREETING": "hello", "ONLY_WEB": "1"})
    machine("dispatcher", deployed=True, env={"GREETING": SECRET_VALUE})
    machine("mq-1", env={"GREETING": "an older one"})
    deployed, tasks = found("drift")
    assert {deployed.status, tasks.status} == {Status.WARNING}
    assert "GREETING, ONLY_WEB" in deployed.sentence
    assert "GREETING" in tasks.sentence
    assert not any(value in f"{deployed}{tasks}" for value in ("hello", SECRET_VALUE, "an older one"))


def test_machines_of_several_images(machine: Callable[..., None], found: Found) -> None:
    machine("web", deployed=True, image="shop:2")
    machine("dispatcher", deployed=True)
    machine("mq-1")
    dispatchers.announce("shop:2", 1)
    deployed, tasks = found("drift")
    assert "2 images" in deployed.sentence
    assert "1 of 1 task machines are not of the current image shop:2" in tasks.sentence


@pytest.mark.parametrize(
    "config",
    [
        {"env": {"FLY_API_TOKEN": SECRET_VALUE}},
        {"processes": [{"cmd": ["true"], "env": {"FLY_API_TOKEN": SECRET_VALUE}}]},
        {"processes": [{"cmd": ["true"], "secrets": [{"env_var": "T", "name": "FLY_API_TOKEN"}]}]},
    ],
)
def test_a_task_machine_that_is_given_the_token(
    machine: Callable[..., None], only: Only, config: dict[str, Any]
) -> None:
    machine("mq-1", **config)
    found = only("leaks")
    assert (found.status, "mq-1" in found.sentence) == (Status.FAILURE, True)
    assert SECRET_VALUE not in f"{found}"


def test_settings_that_give_the_token_away(clinic: Clinic, only: Only) -> None:
    clinic(ENV={"FLY_API_TOKEN": SECRET_VALUE})
    found = only("leaks")
    assert found.status == Status.FAILURE
    assert SECRET_VALUE not in f"{found}"


def test_machines_that_are_killed_too_soon(machine: Callable[..., None], found: Found) -> None:
    machine("dispatcher", deployed=True, stop_config={"signal": "SIGTERM", "timeout": "5s"})
    machine("mq-1", stop_config={"signal": "SIGKILL", "timeout": "30s"})
    tasks, deployed = found("grace")
    assert (tasks.status, deployed.status) == (Status.FAILURE, Status.WARNING)
    assert "mq-1" in tasks.sentence
    assert "kill_timeout = 30" in deployed.remedy


@pytest.mark.parametrize(
    ("duration", "seconds"), [("30s", 30), ("1m30s", 90), ("500ms", 0.5), (5_000_000_000, 5), (None, 5), ("soon", 5)]
)
def test_a_duration_as_fly_writes_it(duration: Any, seconds: float) -> None:
    assert _seconds(duration) == seconds


# The clock ------------------------------------------------------------------------------------------------------------


def test_clocks_that_agree(only: Only) -> None:
    assert only("clock").status == Status.OK


def test_a_clock_that_is_an_hour_ahead(emulator: Emulator, found: Found) -> None:
    emulator.faults.add("clock", offset=3600)
    [late] = [finding for finding in found("clock") if finding.status == Status.WARNING]
    assert re.search(r"3,[56]\d\d", late.sentence), late.sentence
    assert "behind that of the Machines API" in late.sentence
    assert "NTP" in late.remedy
    connections.close_all()
