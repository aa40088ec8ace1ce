"""Backups: where they go, whether there is one, and whether it was proven."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from machinequeue.doctor.findings import Finding, Status
from machinequeue.lifecycle import DrillStatus
from machinequeue.models import Backup
from machinequeue.records import backups

Only = Callable[[str], Finding]
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Path:
    """Where backups are kept."""
    place = tmp_path / "backups"
    entry = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(place)}}
    settings.STORAGES = {**settings.STORAGES, "dbbackup": entry}
    settings.DBBACKUP_HOSTNAME = "shop"
    settings.DBBACKUP_SEND_EMAIL = False
    return place


def backed_up(**facts: Any) -> Backup:
    made = backups.start(database="default", kind="database", name="shop.dump", run_id=None, **facts)
    assert backups.succeed(made.pk, seconds=3.0, size_bytes=4_000_000, sha256="0" * 64, counts={})
    return made


def test_a_site_without_backups(only: Only, settings: Any) -> None:
    settings.STORAGES = {name: each for name, each in settings.STORAGES.items() if name != "dbbackup"}
    for name in ("storage", "backups", "drill"):
        assert only(name).status == Status.SKIPPED


def test_a_storage_that_can_be_written_and_read(only: Only, folder: Path) -> None:
    assert only("storage").status == Status.OK
    assert [each for each in folder.rglob("*") if each.is_file()] == [], "nothing is left behind"


def test_a_storage_that_cannot_be_written(only: Only, folder: Path) -> None:
    folder.touch()  # a file where the folder should be
    found = only("storage")
    assert found.status == Status.FAILURE
    assert "STORAGES['dbbackup'] cannot be written" in found.sentence
    assert found.remedy


def test_a_good_backup_that_was_proven(only: Only) -> None:
    made = backed_up()
    drill = backups.start_drill(made.pk, None)
    backups.finish_drill(drill.pk, DrillStatus.PROVEN, "every count is the same")
    assert only("backups").status == Status.OK
    assert only("drill").status == Status.OK


def test_a_backup_that_is_old_and_was_never_proven(only: Only) -> None:
    backed_up()
    Backup.objects.update(started_at=Now() - timedelta(days=4), finished_at=Now() - timedelta(days=4))
    old, unproven = only("backups"), only("drill")
    assert (old.status, unproven.status) == (Status.FAILURE, Status.WARNING)
    assert "4 d old" in old.sentence
    assert "mq_backup" in old.remedy
    assert "mq_restore_drill" in unproven.remedy


def test_a_backup_that_failed(only: Only) -> None:
    backed_up()
    failed = backups.start(database="default", kind="database", name="", run_id=None)
    backups.fail(failed.pk, "pg_dump: server version mismatch")
    found = only("backups")
    assert (found.status, "server version mismatch" in found.sentence) == (Status.FAILURE, True)


def test_a_restore_that_failed(only: Only) -> None:
    made = backed_up()
    drill = backups.start_drill(made.pk, None)
    backups.finish_drill(drill.pk, DrillStatus.FAILED, "one row of shop_order is missing")
    found = only("drill")
    assert (found.status, "one row of shop_order is missing" in found.sentence) == (Status.FAILURE, True)


def test_at_a_desk_a_missing_backup_is_nothing_bad_and_a_failed_one_is(only: Only, settings: Any) -> None:
    settings.DEBUG = True
    backed_up()
    assert only("drill").status == Status.SKIPPED
    Backup.objects.update(started_at=Now() - timedelta(days=4), finished_at=Now() - timedelta(days=4))
    assert only("backups").status == Status.SKIPPED
    failed = backups.start(database="default", kind="database", name="", run_id=None)
    backups.fail(failed.pk, "no room")
    assert only("backups").status == Status.FAILURE
