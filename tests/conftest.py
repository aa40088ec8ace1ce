"""What the whole run of the tests shares: servers, and databases of its own on them."""

import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests import services


def pytest_unconfigure() -> None:
    """The folder of the settings goes with each process that read them: the one that hands out tests runs none."""
    from django.conf import settings

    if settings.configured:
        shutil.rmtree(settings.SCRATCH, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker begins one when the others have nothing left to do."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # stable: what was shuffled stays shuffled


@pytest.fixture(autouse=True)
def _language_of_the_settings() -> Iterator[None]:
    """A test client's request leaves its language behind in the thread."""
    yield
    from django.utils import translation

    translation.deactivate()


@pytest.fixture(scope="module", autouse=True)
def _no_row_is_left_behind(django_db_blocker: Any) -> Iterator[None]:
    """What one file left in the database would fail another file's tests, in some orders and not in others."""
    yield
    from django.apps import apps
    from django.db import connection

    name, of_tests = (str(of["NAME"]) for of in (connection.settings_dict, connection.settings_dict["TEST"]))
    if not name.startswith(of_tests):
        return  # no test of this process needed the database yet
    with django_db_blocker.unblock():
        left = {
            model._meta.label: rows
            for model in apps.get_models()
            if model._meta.app_label != "contenttypes" and model._meta.label != "auth.Permission"
            if (rows := model._base_manager.count())
        }
    assert not left, f"This file left rows in the database: {left}"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL database of this run, empty at first; services.postgres_database() gives a test one of its own."""
    with services.postgres_database() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis database of this run, empty at first."""
    with services.redis_database() as url:
        yield url
