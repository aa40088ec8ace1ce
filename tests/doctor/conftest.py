"""What the tests of the doctor share: an app in an emulator, settings that name it, and a way to ask one question."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from machinequeue.doctor.findings import Finding
from machinequeue.doctor.rounds import examine
from machinequeue.machines.emulator import Emulator
from tests.integration.conftest import empty_shop, tables, woken
from tests.world import WORKSHOP

__all__ = ["empty_shop", "tables", "woken"]

APP, TOKEN, IMAGE = "shop", "doctor-token-5f2a91", "shop:1"
SECONDS = 60.0
"""What an examination is given here: the computer may be busy."""

Found = Callable[[str], list[Finding]]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("doctor")
    with Emulator(app=APP, token=TOKEN, images={IMAGE: folder, "shop:2": folder}) as running:
        yield running


@pytest.fixture
def clinic(emulator: Emulator, settings: Any, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Settings of a site that is well; called with options of MACHINEQUEUE it changes them."""

    def choose(**options: Any) -> None:
        known = {"APP": APP, "API_TOKEN": TOKEN, "API_URL": emulator.url, "IMAGE": IMAGE}
        settings.MACHINEQUEUE = {**known, "STATE_DIR": str(tmp_path / "state"), **options}

    choose()
    yield choose
    emulator.faults.clear()
    with emulator.client() as client:
        for machine in client.list():
            client.destroy(machine.id, force=True)


@pytest.fixture
def found(clinic: Callable[..., None]) -> Found:
    """What one examination finds."""

    def ask(name: str) -> list[Finding]:
        [report] = examine([name], SECONDS)
        assert report.name == name
        for finding in report.findings:
            assert TOKEN not in f"{finding}"
        return list(report.findings)

    return ask


@pytest.fixture
def only(found: Found) -> Callable[[str], Finding]:
    """The one thing that an examination finds."""

    def ask(name: str) -> Finding:
        findings = found(name)
        assert len(findings) == 1, findings
        return findings[0]

    return ask


@pytest.fixture
def doctor(emulator: Emulator, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run the command in the workshop's project: `doctor("--only", "app", DATABASE_URL=...)`."""

    def run(*words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        known = {
            "PATH": os.environ["PATH"],
            "DJANGO_SETTINGS_MODULE": "tests.workshop.settings",
            "DATABASE_URL": f"sqlite://{tmp_path / 'rows.sqlite3'}",
            "WORKSHOP_STATE": str(tmp_path / "workshop"),
            "FLY_APP_NAME": APP,
            "FLY_API_TOKEN": TOKEN,
            "FLY_API_HOSTNAME": emulator.url,
            "FLY_IMAGE_REF": IMAGE,
        }
        return subprocess.run(
            [sys.executable, "manage.py", "mq_doctor", *words],
            cwd=WORKSHOP,
            env={name: value for name, value in {**known, **environ}.items() if value},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )

    return run
