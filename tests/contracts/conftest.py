"""The contracts: what the harness may ask of Django, and the shop whose hand-offs are held to them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from due_work_harness import configure
from due_work_harness.integrations.django import django_host

from machinequeue import wakeups
from machinequeue.machines.emulator import Emulator
from tests.contracts import shop

configure(django_host(production_packages={"machinequeue"}))

IMAGE = "local"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("contracts")
    with Emulator(app="contracts", images={IMAGE: Path(__file__).parent}, state_dir=folder) as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def open_shop(emulated: Emulator, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The shop of one test; its wake-ups are noted and go nowhere by themselves."""
    if connection.vendor != "postgresql":
        pytest.skip("what the harness asks of the database, only PostgreSQL can answer")
    settings.MACHINEQUEUE = {
        **settings.MACHINEQUEUE,
        "APP": emulated.app,
        "IMAGE": IMAGE,
        # A machine sleeps, so that it is there until somebody ends it; its runner is the test.
        "COMMAND": ["sh", "-c", "exec sleep 600"],
    }
    with emulated.client() as client:
        shop.SHOP.open(client)
        monkeypatch.setattr(wakeups, "wake_soon", shop.SHOP.note_wake_up)
        yield
        shop.SHOP.close()
