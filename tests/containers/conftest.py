"""Worlds whose emulator makes sandboxes, and what is asked of their machines."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import sandbox as sandboxes
from machinequeue.models import Attempt, Machine
from tests.integration.conftest import empty_shop, shop, tables
from tests.waiting import until
from tests.world import APP, TOKEN, World

__all__ = ["empty_shop", "shop", "tables"]

SANDBOX = f"{APP}-sandbox"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if why := sandboxes.problem(sys.base_prefix):
        for item in items:
            if "tests/containers/" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=f"no sandbox can be made here: {why}"))


@contextmanager
def sandbox(world: World) -> Iterator[MachinesClient]:
    with MachinesClient(SANDBOX, token=TOKEN, base_url=world.emulator.url) as client:
        yield client


def running(world: World, result: Any, epoch: int = 1) -> Machine:
    """The machine of a run, once its command is about to run there."""

    def found() -> Machine | None:
        attempt = Attempt.objects.filter(run_id=result.id, epoch=epoch, status="running").first()
        return attempt.machine if attempt is not None else None

    machine = until(found, 60, world.said)
    assert machine is not None
    return machine
