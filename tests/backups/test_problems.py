"""What would make the next backup fail, said before the night: by checks, by a function, with a remedy."""

import os
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.checks import run_checks
from django.core.management import call_command

from machinequeue import backups
from machinequeue.contrib.backups import checks
from machinequeue.contrib.backups.apps import BackupsConfig
from machinequeue.models import Backup
from machinequeue.records import backups as rows
from tests.backups.storages import KEY, SECRET, Bucket
from tests.backups.test_taking import a_program, only_postgresql

pytestmark = pytest.mark.django_db(transaction=True)


def ids(problems: list[backups.Problem]) -> set[str]:
    assert all(each.sentence and each.remedy for each in problems)
    return {each.id.removeprefix("machinequeue.") for each in problems}


def test_nothing_is_wrong(folder: Path, settings: Any) -> None:
    settings.DBBACKUP_HOSTNAME = "shop"
    assert backups.preflight() == []
    assert list(folder.iterdir()) == []


def test_no_storage(settings: Any) -> None:
    assert "E021" in ids(backups.preflight())


def test_a_name_that_changes_with_the_machine(folder: Path, settings: Any) -> None:
    assert ids(backups.preflight()) == {"W020"}
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "APP": "far-ridge-prints"}
    assert backups.preflight() == []
    assert backups.back_up().name.startswith("default-far-ridge-prints-20")


def test_unknown_names(folder: Path, settings: Any) -> None:
    names = {"BACKUP_DATABASES": ["defalt"], "BACKUP_QUEUE": "nightly", "APP": "shop"}
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, **names}
    found = backups.preflight()
    assert ids(found) == {"E022", "W024"}
    assert found[0].remedy == "Did you mean 'default'?"


def test_encryption_without_a_key(folder: Path, settings: Any) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "BACKUP_ENCRYPT": True, "APP": "shop"}
    assert "E023" in ids(backups.preflight())


@pytest.mark.skipif(django.VERSION < (6, 1), reason="the handler breaks on Django 6.1")
def test_the_mail_handler_that_hides_errors(folder: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "APP": "shop"}
    monkeypatch.setattr("django.apps.apps.is_installed", lambda name: True)
    assert ids(backups.in_settings()) == {"W021"}
    settings.DBBACKUP_SEND_EMAIL = False
    assert backups.in_settings() == []


@only_postgresql
@pytest.mark.parametrize(("said", "expected"), [("pg_dump (PostgreSQL) 13.9", {"E027"}), ("what?", {"E025"})])
def test_the_wrong_pg_dump(
    folder: Path, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: set[str]
) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "APP": "shop"}
    place = a_program(tmp_path / "bin", "pg_dump", f"print({said!r})")
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    found = backups.preflight()
    assert ids(found) == expected
    if expected == {"E027"}:
        assert found[0].sentence.startswith("pg_dump is of PostgreSQL 13 and the server of ")
        assert "Install postgresql-client-" in found[0].remedy


def test_little_disk(folder: Path, settings: Any) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "APP": "shop"}
    backups.back_up()
    assert backups.preflight() == []
    Backup.objects.update(size_bytes=2**60)
    [problem] = backups.preflight()
    assert (problem.id, problem.serious) == ("machinequeue.W022", False)


def test_a_storage_that_refuses(bucket: Bucket, settings: Any, tmp_path: Path) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "APP": "shop"}
    settings.STORAGES = {**settings.STORAGES, "dbbackup": bucket.storage(bucket_name="elsewhere")}
    [problem] = backups.preflight()
    assert problem.id == "machinequeue.E028"
    assert "NoSuchBucket" in problem.sentence
    assert SECRET not in f"{problem}"
    assert KEY not in f"{problem}"
    (tmp_path / "file").touch()
    entry = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path / "file"}}
    settings.STORAGES = {**settings.STORAGES, "dbbackup": entry}
    assert ids(backups.preflight()) == {"E028"}


def test_a_store_that_may_refuse_checksums(bucket: Bucket, settings: Any) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "APP": "shop"}
    settings.STORAGES = {**settings.STORAGES, "dbbackup": bucket.storage(client_config=None)}
    assert ids(backups.in_settings()) == {"W023"}
    settings.STORAGES = {**settings.STORAGES, "dbbackup": bucket.storage()}
    assert backups.preflight() == []
    assert bucket.keys() == [], "the probe is removed"


def test_the_checks_show_them(folder: Path, settings: Any) -> None:
    BackupsConfig.create("machinequeue.contrib.backups").ready()
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "BACKUP_DATABASES": ["defalt"]}
    shown = {each.id for each in run_checks(tags=["machinequeue"])}
    assert {"machinequeue.E022", "machinequeue.W020"} <= shown
    assert checks.check_world(databases=["default"]) == [], "settings first"
    settings.MACHINEQUEUE = {"APP": "shop"}
    Backup.objects.bulk_create([Backup(database="default", kind="database", status="running")])
    rows.succeed(Backup.objects.get().pk, seconds=1, size_bytes=2**60, sha256="0" * 64, counts={})
    deploy = run_checks(tags=["database"], include_deployment_checks=True, databases=["default"])
    assert "machinequeue.W022" in {each.id for each in deploy}
    call_command("check", verbosity=0)
