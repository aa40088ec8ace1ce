"""What can be read without asking anybody, and the ground that this computer is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from machinequeue.doctor import ground, setup
from machinequeue.doctor.findings import Finding, Status
from tests.doctor.conftest import Found

Clinic = Callable[..., None]
Only = Callable[[str], Finding]
pytestmark = pytest.mark.django_db(transaction=True)


# Settings -------------------------------------------------------------------------------------------------------------


def test_settings_that_are_right(only: Only) -> None:
    found = only("settings")
    assert (found.status, "App shop at http://127.0.0.1:" in found.sentence) == (Status.OK, True)


def test_settings_that_are_wrong(clinic: Clinic, found: Found) -> None:
    clinic(HEARTBEATS=3, LEASE_SECONDS=1)
    findings = found("settings")
    assert {finding.status for finding in findings} == {Status.FAILURE}
    assert "Did you mean 'HEARTBEAT_SECONDS'?" in findings[0].sentence
    assert "(machinequeue.E001)" in findings[0].sentence
    assert any("three times" in finding.sentence for finding in findings)
    assert found("disk") == [Finding(Status.BLOCKED, "Not examined: mend `settings` first.")]


@pytest.mark.parametrize(("option", "variable"), [("APP", "FLY_APP_NAME"), ("API_TOKEN", "FLY_API_TOKEN")])
def test_settings_that_lack_something(clinic: Clinic, only: Only, option: str, variable: str) -> None:
    clinic(**{option: ""})
    found = only("settings")
    assert (found.status, variable in found.sentence) == (Status.FAILURE, True)
    assert "mq_dev" in found.remedy


def test_a_token_that_was_not_pasted_whole(clinic: Clinic, only: Only) -> None:
    clinic(API_TOKEN="FlyV1 fm2_half of a\ntoken-that-stays-hidden")
    found = only("settings")
    assert (found.status, "pasted whole" in found.sentence) == (Status.FAILURE, True)
    assert "stays-hidden" not in f"{found}"


# Environment ----------------------------------------------------------------------------------------------------------


def test_development(only: Only) -> None:
    found = only("environment")
    assert (found.status, "Development" in found.sentence) == (Status.OK, True)


def test_production(clinic: Clinic, only: Only) -> None:
    clinic(API_URL="https://api.machines.dev")
    found = only("environment")
    assert (found.status, "Production" in found.sentence) == (Status.OK, True)


def test_development_in_production(clinic: Clinic, found: Found, settings: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("FLY_MACHINE_ID", "148e21")
    settings.DEBUG = True
    debug, emulator = found("environment")
    assert (debug.status, emulator.status) == (Status.FAILURE, Status.FAILURE)
    assert "DEBUG = False" in debug.remedy
    assert "FLY_API_HOSTNAME" in emulator.remedy


def test_debug_at_a_desk_that_launches_real_machines(clinic: Clinic, only: Only, settings: Any) -> None:
    settings.DEBUG = True
    clinic(API_URL="https://api.machines.dev")
    found = only("environment")
    assert (found.status, "cost money" in found.sentence) == (Status.WARNING, True)


# Packages -------------------------------------------------------------------------------------------------------------


def test_packages_that_are_there(only: Only) -> None:
    assert only("packages").status == Status.OK


def test_packages_that_are_missing(clinic: Clinic, found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    find = setup.find_spec
    monkeypatch.setattr(setup, "find_spec", lambda name: None if name in ("redis", "uvicorn") else find(name))
    clinic(REDIS_URL="redis://127.0.0.1:6379/0")
    findings = found("packages")
    assert {finding.status for finding in findings} == {Status.FAILURE}
    remedies = " ".join(finding.remedy for finding in findings)
    assert "machinequeue[redis]" in remedies
    assert "machinequeue[emulator]" in remedies


# Times ----------------------------------------------------------------------------------------------------------------


def test_times_that_leave_room(only: Only) -> None:
    found = only("timeouts")
    assert (found.status, "4.5 heartbeats of 10 s" in found.sentence) == (Status.OK, True)


def test_a_lease_that_one_late_heartbeat_costs(clinic: Clinic, only: Only) -> None:
    clinic(LEASE_SECONDS=15)
    found = only("timeouts")
    assert (found.status, "at least 30" in found.remedy) == (Status.FAILURE, True)


@pytest.mark.parametrize(
    ("policy", "says"),
    [({"min_machines": 1, "timeout": 3000, "machine_life": 3600}, "only in the first 570 s")],
)
def test_machines_that_are_kept_for_too_little(settings: Any, only: Only, policy: dict[str, Any], says: str) -> None:
    settings.TASKS = {"default": {"BACKEND": "machinequeue.MachineBackend", "QUEUES": {"q": policy}}}
    found = only("timeouts")
    assert (found.status, says in found.sentence) == (Status.WARNING, True)


def test_a_queue_whose_runs_outlive_their_machine_blocks_what_needs_queues(settings: Any, found: Found) -> None:
    queues = {"q": {"timeout": 3600, "machine_life": 3600}}
    settings.TASKS = {"default": {"BACKEND": "machinequeue.MachineBackend", "QUEUES": queues}}
    [wrong] = found("settings")
    assert (wrong.status, "no machine could finish such a run" in wrong.sentence) == (Status.FAILURE, True)
    assert found("timeouts") == [Finding(Status.BLOCKED, "Not examined: mend `settings` first.")]


# Disk -----------------------------------------------------------------------------------------------------------------


def test_a_disk_with_room(only: Only, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground, "LITTLE_FREE_MB", 0)
    assert only("disk").status == Status.OK


def test_a_folder_that_cannot_be_made(clinic: Clinic, only: Only, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    clinic(STATE_DIR=str(tmp_path / "file" / "state"))
    found = only("disk")
    assert (found.status, "cannot be made" in found.sentence) == (Status.FAILURE, True)
    assert "STATE_DIR" in found.remedy


@pytest.mark.parametrize(("least", "status"), [(0, Status.WARNING), (10**12, Status.FAILURE)])
def test_a_disk_with_less_room_than_it_should_have(
    only: Only, monkeypatch: pytest.MonkeyPatch, least: int, status: Status
) -> None:
    monkeypatch.setattr(ground, "LITTLE_FREE_MB", 10**12)
    monkeypatch.setattr(ground, "LEAST_FREE_MB", least)
    found = only("disk")
    assert (found.status, "MB are free" in found.sentence) == (status, True)
