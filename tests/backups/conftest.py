"""Storages for the tests of backups: a folder, and a bucket over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.checks.registry import registry

from tests.backups.storages import Bucket


@pytest.fixture(autouse=True)
def _checks_as_before() -> Iterator[None]:
    """An installed app's checks stay in the process otherwise, and the settings of other tests have no backups."""
    before = set(registry.registered_checks), set(registry.deployment_checks)
    yield
    registry.registered_checks, registry.deployment_checks = before


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Path:
    """Backups are kept in this folder."""
    place = tmp_path / "backups"
    options = {"location": str(place)}
    entry = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": options}
    settings.STORAGES = {**settings.STORAGES, "dbbackup": entry}
    return place


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    yield made
    made.end()


@pytest.fixture
def in_bucket(bucket: Bucket, settings: Any) -> Bucket:
    """Backups are kept in this bucket."""
    settings.STORAGES = {**settings.STORAGES, "dbbackup": bucket.storage()}
    return bucket
