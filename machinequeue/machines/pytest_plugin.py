"""A fixture for projects that test against the emulated Machines API.

    # conftest.py
    pytest_plugins = ["machinequeue.machines.pytest_plugin"]

    # test_shop.py
    def test_the_answer_is_lost(machines_emulator):
        lost = machines_emulator.faults.lose_answer("create")
        ...
        assert lost.fired == 1

It needs the extra `emulator`, and no Django. It is asked for by name because not every project that installs this
package tests with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from machinequeue.machines.emulator import Emulator


@pytest.fixture
def machines_emulator_options() -> dict[str, Any]:
    """What `machines_emulator` is started with; override it to give it an app, images, secrets (see `Emulator`)."""
    return {}


@pytest.fixture
def machines_emulator(
    machines_emulator_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    """An emulator of the test's own, without faults; its journal stays in pytest's temporary directory."""
    given = {"state_dir": tmp_path_factory.mktemp("machines-emulator"), **machines_emulator_options}
    with Emulator(**given) as emulator:
        yield emulator
