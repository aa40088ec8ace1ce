"""Scenes for crash tests: one for all tests of a module, emptied between them."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from tests.crash.scene import Scene, environment
from tests.integration.conftest import tables
from tests.world import world

__all__ = ["tables"]


@pytest.fixture(scope="module")
def scenery(
    tables: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    """The fixture `redis_url` is the module's own where it has one; so is SETTINGS, of MACHINEQUEUE."""
    root = tmp_path_factory.mktemp("scene")
    more = environment(root, getattr(request.module, "SETTINGS", None))
    with django_db_blocker.unblock():
        redis_url = "" if connection.vendor == "sqlite" else request.getfixturevalue("redis_url")
        with world(root, redis_url, more=more) as made:
            scene = Scene(made)
            yield scene
            scene.end_dispatchers()


@pytest.fixture
def scene(scenery: Scene) -> Iterator[Scene]:
    """The module's world with one dispatcher, which is started again when it dies. Nothing of other tests is in it."""
    scenery.start_dispatchers()
    scenery.keep_dispatchers()
    yield scenery
    scenery.clear()
