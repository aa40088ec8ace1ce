"""The commands, as somebody types them; and an emergency, from an empty server back to the shop."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.db import connection

from machinequeue import backups, conf
from machinequeue.backups.retention import Rule, kept
from machinequeue.conf import Settings
from machinequeue.contrib.backups import tasks
from machinequeue.lifecycle import DrillStatus
from machinequeue.models import Backup, RestoreDrill, TaskRun
from machinequeue.records import backups as rows
from tests import services
from tests.backups.test_taking import GROUPS, only_postgresql
from tests.world import database_url

pytestmark = pytest.mark.django_db(transaction=True)


def said(name: str, *words: str) -> str:
    out = io.StringIO()
    call_command(name, *words, stdout=out)
    return out.getvalue()


def test_a_backup_here_and_its_proof(folder: Path) -> None:
    Group.objects.create(name="one")
    text = said("mq_backup", "--local")
    made = Backup.objects.get()
    assert text == f"default: {made.name}, {made.size_bytes} bytes in {made.seconds:.1f} s, sha256 {made.sha256}\n"
    text = said("mq_restore_drill", "--local")
    drill = RestoreDrill.objects.get()
    assert text == f"Proven ({drill.method}). {made.name}: {drill.reason}\n"


def test_the_exit_code_says_what_a_drill_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="There is no backup of the database 'default'") as caught:
        said("mq_restore_drill", "--local")
    assert caught.value.returncode == 1
    made = backups.back_up()
    Backup.objects.update(size_bytes=2**60)
    with pytest.raises(CommandError, match="Not proven") as caught:
        said("mq_restore_drill", "--local")
    assert caught.value.returncode == 2
    Backup.objects.update(size_bytes=17)
    with pytest.raises(CommandError, match="truncated or replaced") as caught:
        said("mq_restore_drill", "--local", "--name", made.name)
    assert caught.value.returncode == 1


def test_without_the_app_nothing_is_enqueued(folder: Path) -> None:
    for command in ("mq_backup", "mq_restore_drill"):
        with pytest.raises(CommandError, match=r"add .machinequeue\.contrib\.backups. to INSTALLED_APPS"):
            said(command)
    assert not TaskRun.objects.exists()


def test_they_are_enqueued_unless_told_otherwise(folder: Path, settings: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "machinequeue.contrib.backups"]
    text = said("mq_backup", "--database", "default") + said("mq_restore_drill", "--name", "n")
    backup, drill = TaskRun.objects.order_by("id")
    assert text == f"Enqueued as run {backup.pk}.\nEnqueued as run {drill.pk}.\n"
    assert (backup.task, backup.args) == ("machinequeue.contrib.backups.tasks.back_up", [["default"], None])
    assert (drill.task, drill.args) == ("machinequeue.contrib.backups.tasks.prove", ["default", "n"])
    for command in ("mq_backup", "mq_restore_drill"):
        with pytest.raises(CommandError, match=r"DATABASES has no 'defalt'. Did you mean 'default'?"):
            said(command, "--database", "defalt")


def test_the_table(folder: Path) -> None:
    assert said("mq_backups") == "There is no backup. manage.py mq_backup makes one.\n"
    made = backups.back_up()
    backups.drill()
    failed = rows.start(database="default", kind="database", run_id=None)
    rows.fail(failed.pk, "no luck")
    heading, first, second, why = said("mq_backups").splitlines()
    assert heading.split() == ["backup", "state", "age", "size", "took", "sha256", "last", "drill"]
    assert first.split()[0] == "failed"
    assert second.split()[:2] == [made.name, "succeeded"]
    assert second.endswith(f"{made.sha256[:12]}  proven")
    assert why.endswith("failed: no luck")
    newest, older = json.loads(said("mq_backups", "--json"))
    assert (newest["status"], newest["error"], newest["last_drill"]) == ("failed", "no luck", None)
    assert older["last_drill"]["status"] == "proven"
    assert (older["sha256"], older["size_bytes"], older["stored"]) == (made.sha256, made.size_bytes, True)
    assert len(json.loads(said("mq_backups", "--json", "--limit", "1"))) == 1


def test_wrong_calls_are_answered_in_a_sentence(folder: Path) -> None:
    with pytest.raises(CommandError, match="--limit must be 1 or more, not -1"):
        said("mq_backups", "--limit", "-1")
    with pytest.raises(CommandError, match="--to names the file for --fetch NAME"):
        said("mq_backups", "--to", "x")


def test_fetching_needs_no_row(folder: Path, tmp_path: Path) -> None:
    made = backups.back_up()
    Backup.objects.all().delete()
    assert said("mq_backups", "--stored") == f"{made.name}\n"
    target = tmp_path / "restored"
    said("mq_backups", "--fetch", made.name, "--to", str(target))
    start = target.read_bytes()[:6]
    assert start == (b"PGDMP\x01" if connection.vendor == "postgresql" else b"SQLite")
    with pytest.raises(CommandError, match="exists"):
        said("mq_backups", "--fetch", made.name, "--to", str(target))
    with pytest.raises(CommandError, match=r"not in the storage: .* mq_backups --stored lists"):
        said("mq_backups", "--fetch", "nightly", "--to", str(tmp_path / "other"))
    content = bytearray((folder / made.name).read_bytes())
    content[-1] ^= 0xFF
    (folder / made.name).write_bytes(content)
    with pytest.raises(CommandError, match="is damaged"):
        said("mq_backups", "--fetch", made.name, "--to", str(tmp_path / "damaged"))
    assert not (tmp_path / "damaged").exists()


@only_postgresql
def test_an_emergency(folder: Path, tmp_path: Path) -> None:
    """As the manual says it: an empty database, the newest backup of the storage, pg_restore."""
    Group.objects.bulk_create(Group(name=f"group {number}") for number in range(9))
    made = backups.back_up()
    target = tmp_path / "shop.dump"
    said("mq_backups", "--fetch", made.name, "--to", str(target))
    with services.postgres_database() as url:
        words = ["pg_restore", "--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
        subprocess.run([*words, f"--dbname={url}", str(target)], check=True)
        with psycopg.connect(url) as there:
            assert there.execute("SELECT count(*) FROM auth_group").fetchone() == (9,)
            assert there.execute("SELECT status, name FROM machinequeue_backup").fetchone() == ("running", made.name)


def test_a_restored_database_does_not_remove_the_backup_it_came_from(folder: Path) -> None:
    """In the copy the backup still runs; when that is given up, what it is about must not be swept away."""
    made = backups.back_up()
    Backup.objects.filter(pk=made.pk).update(
        status="running",
        finished_at=None,
        size_bytes=None,
        sha256="",
        counts=None,
        started_at=rows.recent()[0].now - rows.ABANDONED * 2,  # type: ignore[attr-defined]
    )
    later = backups.back_up()
    again = Backup.objects.get(pk=made.pk)
    assert (again.status, again.error, again.sha256, again.counts) == ("succeeded", "", made.sha256, made.counts)
    assert (folder / made.name).exists()
    assert [each.pk for each in rows.stored("default")] == [later.pk, made.pk]
    assert backups.drill(name=made.name).status == "proven"


# The tasks ------------------------------------------------------------------------------------------------------------


SCHEDULES = """
import django; django.setup()
from machinequeue import schedules
for each in schedules._declared.values(): print(each.name, each.task, each.when)
"""


@pytest.mark.parametrize(
    ("module", "values", "expected"),
    [
        ("tests.backups.project", {}, "0 3 * * *"),
        ("tests.backups.project", {"BACKUP_SCHEDULE": "@daily", "BACKUP_TIMEZONE": "Asia/Kolkata"}, "Asia/Kolkata"),
        ("tests.backups.project", {"BACKUP_SCHEDULE": ""}, ""),
        ("tests.workshop.settings", {}, ""),
    ],
)
def test_who_asks_for_backups_gets_them_at_night_and_nobody_else(
    folder: Path, module: str, values: dict[str, str], expected: str
) -> None:
    environment = {"DJANGO_SETTINGS_MODULE": module, "BACKUPS": str(folder), "DATABASE_URL": database_url()}
    environment |= {"WORKSHOP_SETTINGS": json.dumps(values), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", SCHEDULES], env=environment, capture_output=True, text=True, check=True
    )
    declared = [line for line in done.stdout.splitlines() if line.startswith(tasks.SCHEDULE)]
    assert len(declared) == bool(expected), done.stdout
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"backend": "default", "queue_name": "default", "cpus": 1, "memory_mb": 1024, "timeout": 3000.0}),
        ({"backup_memory_mb": 3000}, {"cpus": 2, "memory_mb": 2816}),
        ({"backup_memory_mb": 90_000}, {"cpus": 8, "memory_mb": 16_384}),
        ({"backup_queue": "reports", "backup_timeout": 90_000.0}, {"queue_name": "reports", "timeout": 3570.0}),
        ({"backup_queue": "nowhere"}, {"queue_name": "default"}),
    ],
)
def test_their_machine(values: dict[str, Any], expected: dict[str, Any]) -> None:
    lane = conf.backup_lane(Settings(**values))
    assert {name: lane[name] for name in expected} == expected
    assert conf.guest_problem(lane["cpu_kind"], lane["cpus"], lane["memory_mb"]) is None


class Context:
    """What a task without a run of ours is given."""

    def __init__(self) -> None:
        self.task_result = self
        self.id = "00000000-0000-0000-0000-000000000000"


def test_one_database_that_fails_keeps_no_other_from_being_made(folder: Path, settings: Any) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "BACKUP_DATABASES": ["elsewhere", "default"]}
    with pytest.raises(Exception, match=r"elsewhere: DATABASES has no 'elsewhere'"):
        tasks.back_up.func(Context())
    assert Backup.objects.get().status == "succeeded"
    assert [run.task for run in TaskRun.objects.all()] == ["machinequeue.contrib.backups.tasks.prove"]


def test_media_when_asked_and_no_drill_when_not(folder: Path, settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "media"
    settings.MEDIA_ROOT.mkdir()
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "BACKUP_MEDIA": True, "BACKUP_DRILL": False}
    returned = tasks.back_up.func(Context())
    assert set(returned["made"]) == {"default", "media"}
    assert returned["drills"] == []
    assert rows.newest("", "media") is not None
    assert not TaskRun.objects.exists()


def test_a_refuted_backup_fails_its_run_and_an_unproven_one_does_not(folder: Path) -> None:
    backups.back_up()
    Backup.objects.update(size_bytes=2**60)
    assert tasks.prove.func(Context())["status"] == DrillStatus.NOT_PROVEN
    Backup.objects.update(size_bytes=17)
    with pytest.raises(Exception, match="truncated"):
        tasks.prove.func(Context())


def test_lost_drills_are_settled(folder: Path) -> None:
    made = backups.back_up()
    drill = rows.start_drill(made.pk, None)
    assert rows.settle() == 0
    RestoreDrill.objects.update(started_at=rows.recent()[0].now - rows.ABANDONED * 2)  # type: ignore[attr-defined]
    assert rows.settle() == 1
    drill.refresh_from_db()
    assert (drill.status, drill.reason) == ("failed", rows.LOST)
    assert (Backup.objects.get().counts or {})[GROUPS] == 0


def test_the_newest_of_each_period_is_kept() -> None:
    from datetime import UTC, datetime, timedelta

    nights = [datetime(2026, 11, 21, 3, tzinfo=UTC) - timedelta(days=age) for age in range(400)]
    known = list(enumerate(nights))
    assert kept(known, Rule(1, 0, 0, 0)) == {0}
    assert kept(known, Rule(0, 0, 0, 0)) == {0}, "the newest stays, whatever settings say"
    assert kept(known, Rule(1, 7, 0, 0)) == set(range(7))
    assert kept(known, Rule(1, 0, 3, 0)) == {0, 6, 13}, "Saturday, and the two Sundays before"
    assert kept(known, Rule(1, 0, 0, 3)) == {0, 21, 52}, "today, and the last of October and of September"
    assert kept(known, Rule(10, 7, 4, 6)) == {*range(10), 13, 20, 21, 52, 82, 113, 144}
    twice = [("a", nights[0]), ("b", nights[0] + timedelta(hours=1)), ("c", nights[1])]
    assert kept(twice, Rule(1, 2, 0, 0)) == {"b", "c"}
