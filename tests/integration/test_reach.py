"""What a task machine can reach: the app's secrets but those withheld, and never the token of the Machines API."""

import contextlib
import json
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from machinequeue.compat import TaskResultStatus
from machinequeue.models import Attempt, TaskRun
from tests.waiting import until
from tests.workshop import tasks
from tests.world import TOKEN, World

pytestmark = pytest.mark.django_db(transaction=True)
WITHHELD = {"WORKSHOP_SETTINGS": json.dumps({"WITHHOLD_SECRETS": ["SHOP_SECRET"]})}


def _environments(shop: World) -> list[dict[str, str]]:
    """/proc/<pid>/environ of every process of a machine: what it was started with, whatever it forgot since."""
    found = []
    for process in shop.machine_processes():
        with contextlib.suppress(psutil.Error):
            found.append(process.environ())
    return found


def _while_running(shop: World, gate: Path) -> list[dict[str, str]]:
    result = tasks.wait_for.enqueue(str(gate))
    until(lambda: TaskRun.objects.filter(pk=result.id, status="RUNNING").exists(), 60, shop.said)
    environments = _environments(shop)
    gate.touch()
    shop.finish(result, seconds=60)
    assert environments, "no process of the machine was seen"
    return environments


def test_no_process_of_a_machine_was_started_with_the_token(empty_shop: World, tmp_path: Path) -> None:
    empty_shop.dispatcher()
    for environment in _while_running(empty_shop, tmp_path / "gate"):
        assert environment["SHOP_SECRET"] == "a secret of the app"
        assert "FLY_API_TOKEN" not in environment
        assert TOKEN not in "".join(environment.values())


def test_a_withheld_secret_reaches_no_process_of_a_machine(empty_shop: World, tmp_path: Path) -> None:
    empty_shop.dispatcher(**WITHHELD)
    for environment in _while_running(empty_shop, tmp_path / "gate"):
        assert "SHOP_SECRET" not in environment
        assert "a secret of the app" not in "".join(environment.values())
        assert "FLY_API_TOKEN" not in environment
        assert environment["DATABASE_URL"] == empty_shop.url


def test_while_the_names_of_the_secrets_cannot_be_read_runs_wait(empty_shop: World) -> None:
    with empty_shop.emulator.faults.add("server_error", "secret-get", status=500) as fault:
        empty_shop.dispatcher()
        result = tasks.add.enqueue(2, 3)
        until(lambda: fault.fired > 0, 60, empty_shop.said)
        assert not empty_shop.emulator.machines()
        assert result.status == TaskResultStatus.READY
    # Fly answers again, and nothing else has to be done.
    empty_shop.finish(result, seconds=90)
    assert result.return_value == 5


def test_a_worker_app_of_its_own_gives_machines_only_its_own_secrets(empty_shop: World, tmp_path: Path) -> None:
    own = {"DATABASE_URL": empty_shop.url, "DJANGO_SETTINGS_MODULE": "tests.workshop.settings"}
    _call(empty_shop, "/v1/apps", {"app_name": "workers", "org_slug": "personal"})
    _call(empty_shop, "/v1/apps/workers/secrets", {"values": own})
    # As on Fly, where FLY_APP_NAME and FLY_MACHINE_ID are those of the dispatcher's machine.
    empty_shop.dispatcher(WORKSHOP_SETTINGS=json.dumps({"APP": "workers"}), FLY_MACHINE_ID="d8dispatcher00")
    for environment in _while_running(empty_shop, tmp_path / "gate"):
        assert environment["FLY_APP_NAME"] == "workers"
        assert not {"SHOP_SECRET", "FLY_API_TOKEN", "WORKSHOP_IDLE"} & environment.keys()
    assert not empty_shop.emulator.machines(), "none in the dispatcher's own app"


def test_a_row_can_name_tasks_only(empty_shop: World) -> None:
    """Who writes the table may run any task with any arguments, and nothing that is no task."""
    result = tasks.add.enqueue(2, 3)
    TaskRun.objects.filter(pk=result.id).update(task="os.abort", args=[], kwargs={})
    empty_shop.dispatcher()
    until(lambda: TaskRun.objects.filter(pk=result.id, status="FAILED").exists(), 60, empty_shop.said)
    attempt = Attempt.objects.get(run=result.id)
    assert "os.abort is a builtin_function_or_method, not a task" in attempt.traceback
    empty_shop.all_gone(60)


def _call(shop: World, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(  # noqa: S310 - the emulator on loopback
        f"{shop.emulator.url}{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        assert answer.status < 300
