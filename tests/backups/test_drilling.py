"""Drills: what proves a backup, and each way in which one is refuted or not proven, with its sentence."""

import contextlib
import gzip
import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
from django.contrib.auth.models import Group
from django.db import connection

from machinequeue import backups, conf
from machinequeue.backups import restoring, throwaway
from machinequeue.errors import BackupRefuted, ConfigurationError
from machinequeue.models import Backup, RestoreDrill
from machinequeue.records import backups as rows
from tests import services
from tests.backups.test_taking import GROUPS, a_program, only_postgresql
from tests.world import database_url

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def made(folder: Path) -> Backup:
    """A backup with three groups."""
    Group.objects.bulk_create(Group(name=f"group {number}") for number in range(3))
    return backups.back_up()


def rewrite(folder: Path, backup: Backup, content: bytes, *, noted: bool) -> None:
    """Put something else in its place; `noted`: with the checksum right, so that only the restore can tell."""
    (folder / backup.name).write_bytes(content)
    if noted:
        checksum = hashlib.sha256(content).hexdigest()
        Backup.objects.filter(pk=backup.pk).update(size_bytes=len(content), sha256=checksum)


def test_a_whole_backup_is_proven_and_nothing_is_left(made: Backup) -> None:
    drill = backups.drill()
    assert (drill.status, drill.backup, drill.differences) == ("proven", made, None)
    assert drill.reason.endswith("all as backed up.")
    assert drill.method == ("throwaway server" if connection.vendor == "postgresql" else "sqlite file")
    assert drill.finished_at is not None
    assert rows.last_drill() == drill
    children = [each.name() for each in psutil.Process().children(recursive=True)]
    assert "postgres" not in children
    assert rows.newest_proven([made.pk]) == {made.pk}


@only_postgresql
def test_excluded_tables_come_back_empty_and_that_is_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Group.objects.create(name="left out")
    # django-dbbackup reads its settings when it is imported.
    monkeypatch.setattr("dbbackup.settings.CONNECTORS", {"default": {"EXCLUDE": ["auth_group"]}})
    made = backups.back_up()
    assert made.counts is not None
    assert "public.auth_group" not in made.counts
    drill = backups.drill()
    assert (drill.status, drill.differences) == ("proven", None), drill.reason


def test_a_damaged_backup_is_caught_by_its_checksum(made: Backup, folder: Path) -> None:
    content = bytearray((folder / made.name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    rewrite(folder, made, bytes(content), noted=False)
    drill = backups.drill()
    assert drill.status == "failed"
    assert drill.reason.startswith(f"{made.name} is damaged: its checksum is")


def test_a_truncated_backup_is_caught_by_its_size(made: Backup, folder: Path) -> None:
    content = (folder / made.name).read_bytes()
    rewrite(folder, made, content[: len(content) // 2], noted=False)
    drill = backups.drill()
    assert drill.status == "failed"
    assert f"{len(content) // 2} bytes in the storage; {len(content)} were written. It was truncated" in drill.reason


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_dump_that_was_never_whole_is_caught_by_restoring_it(made: Backup, folder: Path, share: float) -> None:
    content = (folder / made.name).read_bytes()
    rewrite(folder, made, content[: int(len(content) * share)], noted=True)
    drill = backups.drill()
    assert drill.status == "failed"
    assert "cannot be" in drill.reason or "does not restore" in drill.reason


def test_a_missing_row_is_caught_by_counting(made: Backup, folder: Path) -> None:
    """A dump that is whole and has one row less than was counted."""
    Group.objects.filter(name="group 1").delete()
    poorer = backups.back_up()
    rewrite(folder, made, (folder / poorer.name).read_bytes(), noted=True)
    drill = backups.drill(name=made.name)
    assert drill.status == "failed"
    assert f"{GROUPS} has 2 rows instead of 3 rows" in drill.reason
    assert drill.differences is not None
    assert drill.differences[GROUPS] == [3, 2]


def test_a_backup_that_something_else_removed_is_refuted(made: Backup, folder: Path) -> None:
    (folder / made.name).unlink()
    drill = backups.drill()
    assert drill.status == "failed"
    assert "is not in the storage: something else removed it" in drill.reason


def test_no_backup_at_all_is_said() -> None:
    with pytest.raises(BackupRefuted, match=r"no backup of the database 'default'; manage.py mq_backup makes one"):
        backups.drill()
    with pytest.raises(BackupRefuted, match="no backup 'nightly'"):
        backups.drill(name="nightly")
    assert not RestoreDrill.objects.exists()


def test_too_little_disk_proves_nothing(made: Backup) -> None:
    Backup.objects.update(size_bytes=2**60)
    drill = backups.drill()
    assert drill.status == "not_proven"
    assert "Give the machine more disk." in drill.reason


def test_a_drill_that_fails_itself_is_recorded(made: Backup, settings: Any) -> None:
    settings.STORAGES = {name: entry for name, entry in settings.STORAGES.items() if name != "dbbackup"}
    with pytest.raises(ConfigurationError):
        backups.drill()
    assert RestoreDrill.objects.get().status == "failed"


# Where to restore -----------------------------------------------------------------------------------------------------


@only_postgresql
def test_without_a_server_it_is_only_read(made: Backup, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throwaway, "programs", lambda: None)
    drill = backups.drill()
    assert (drill.status, drill.method) == ("not_proven", "listing")
    assert "DRILL_DATABASE_URL" in drill.reason
    content = (folder / made.name).read_bytes()
    rewrite(folder, made, content[: int(len(content) * 0.9)], noted=True)
    assert backups.drill().status == "failed", "what cannot even be read is refuted"


@only_postgresql
def test_a_server_older_than_the_backup_proves_nothing(made: Backup) -> None:
    Backup.objects.update(server_version="99.1")
    drill = backups.drill()
    assert drill.status == "not_proven"
    assert "Install postgresql-99 in the image" in drill.reason


@only_postgresql
def test_an_extension_that_is_missing_there_proves_nothing(made: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = restoring._list
    monkeypatch.setattr(restoring, "_list", lambda file: f"{listed(file)}\n9999; 3079 17000 EXTENSION - postgis \n")
    drill = backups.drill()
    assert drill.status == "not_proven"
    assert "lacks the extension postgis" in drill.reason


@pytest.fixture
def drill_url(settings: Any) -> Any:
    """Say where to restore."""

    def choose(url: str) -> None:
        settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "DRILL_DATABASE_URL": url}
        assert conf.settings().drill_database_url == url

    return choose


def databases(url: str) -> set[str]:
    with psycopg.connect(url) as there:
        return {name for (name,) in there.execute("SELECT datname FROM pg_database WHERE datname LIKE 'mq_drill%'")}


@only_postgresql
def test_a_database_of_its_own_is_made_and_dropped_on_a_server_that_allows_it(made: Backup, drill_url: Any) -> None:
    """The named database, here the very one that was backed up, is only where it connects to say so."""
    url = database_url()
    drill_url(url)
    left = f"mq_drill_1000_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as there:
        there.execute(f"CREATE DATABASE {left}")  # type: ignore[arg-type]
    before = Group.objects.count()
    drill = backups.drill()
    assert (drill.status, drill.method) == ("proven", "DRILL_DATABASE_URL"), drill.reason
    assert left not in databases(url), "what a killed drill left long ago"
    assert Group.objects.count() == before


@pytest.fixture
def modest_role() -> Any:
    """A role that may not create databases, and a database of its own."""
    with services.postgres_database() as url:
        name = urlsplit(url).path.lstrip("/")
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'drill-secret-9b2'")  # type: ignore[arg-type]
            admin.execute(f"ALTER DATABASE {name} OWNER TO {name}")  # type: ignore[arg-type]
            admin.execute(f"ALTER SCHEMA public OWNER TO {name}")  # type: ignore[arg-type]
        try:
            yield f"postgresql://{name}:drill-secret-9b2@{urlsplit(url).hostname}:{urlsplit(url).port}/{name}"
        finally:
            with psycopg.connect(url, autocommit=True) as admin:
                admin.execute(f"ALTER DATABASE {name} OWNER TO CURRENT_USER")  # type: ignore[arg-type]
                admin.execute(f"DROP OWNED BY {name} CASCADE")  # type: ignore[arg-type]
                admin.execute(f"DROP ROLE {name}")  # type: ignore[arg-type]


@only_postgresql
def test_an_empty_database_is_used_and_emptied_where_none_can_be_made(
    made: Backup, drill_url: Any, modest_role: str
) -> None:
    drill_url(modest_role)
    for _ in range(2):
        drill = backups.drill()
        assert drill.status == "proven", drill.reason
    with psycopg.connect(modest_role) as there:
        there.execute("CREATE TABLE precious (x int)")
    refused = backups.drill()
    assert refused.status == "not_proven"
    assert "is left alone" in refused.reason
    with psycopg.connect(modest_role) as there:
        assert there.execute("SELECT count(*) FROM precious").fetchone() == (0,)
    everything = " ".join(f"{each.reason} {each.method} {each.differences}" for each in RestoreDrill.objects.all())
    assert "drill-secret-9b2" not in everything


@only_postgresql
def test_what_replicates_is_not_restored(folder: Path, drill_url: Any, modest_role: str) -> None:
    """A publication of all tables needs a superuser, and a copy is to publish nothing."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE PUBLICATION mq_everything FOR ALL TABLES")
        try:
            backups.back_up()
        finally:
            cursor.execute("DROP PUBLICATION mq_everything")
    drill_url(modest_role)
    drill = backups.drill()
    assert drill.status == "proven", drill.reason


@only_postgresql
@pytest.mark.parametrize(
    "sentence",
    [
        "CREATE VIEW precious AS SELECT 1",
        "CREATE SEQUENCE precious",
        "CREATE FUNCTION precious() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE precious AS ENUM ('a')",
    ],
)
def test_a_database_with_anything_in_it_is_left_alone(
    made: Backup, drill_url: Any, modest_role: str, sentence: str
) -> None:
    with psycopg.connect(modest_role) as there:
        there.execute(sentence)  # type: ignore[arg-type]
    drill_url(modest_role)
    refused = backups.drill()
    assert refused.status == "not_proven", refused.reason
    assert "is left alone" in refused.reason


@pytest.mark.parametrize(
    "url", ["postgresql://u:pa[ss]word@h/db", "postgresql://u:secret\uff1aword@h/db", "[", "postgresql://h:port/db"]
)
def test_a_url_that_is_none_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        restoring.parse(url)
    assert not any(word in f"{caught.value} {caught.value.__cause__}" for word in ("ss]", "secret"))


@only_postgresql
def test_two_drills_take_turns_in_a_database(modest_role: str) -> None:
    place = restoring.parse(modest_role)
    ask = "SELECT pg_try_advisory_lock(%s)"
    with restoring._database_of(place, "default"), psycopg.connect(modest_role) as another:
        assert another.execute(ask, [restoring.LOCK]).fetchone() == (False,)
    with psycopg.connect(modest_role) as another:
        assert another.execute(ask, [restoring.LOCK]).fetchone() == (True,)


@only_postgresql
def test_what_a_killed_drill_left_in_a_database_is_emptied(made: Backup, drill_url: Any, modest_role: str) -> None:
    with psycopg.connect(modest_role) as there:
        there.execute(f"CREATE SCHEMA {restoring.MARK}")  # type: ignore[arg-type]
        there.execute("CREATE TABLE half (x int)")
    drill_url(modest_role)
    assert backups.drill().status == "proven"


@only_postgresql
def test_a_server_that_does_not_answer_proves_nothing(made: Backup, drill_url: Any) -> None:
    drill_url("postgresql://ada:drill-secret-9b2@127.0.0.1:9/nowhere")
    drill = backups.drill()
    assert drill.status == "not_proven"
    assert "cannot be reached" in drill.reason
    assert "drill-secret" not in drill.reason


@only_postgresql
def test_an_address_that_is_none_is_refused_without_its_password(made: Backup, drill_url: Any) -> None:
    drill_url("mysql://ada:drill-secret-9b2@db/nowhere")
    with pytest.raises(ConfigurationError, match="must be postgresql://") as caught:
        backups.drill()
    assert "drill-secret" not in str(caught.value)


@only_postgresql
def test_the_password_of_the_drill_is_in_no_argv(
    made: Backup, drill_url: Any, modest_role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, real = tmp_path / "noted", shutil.which("pg_restore")
    script = f"import os, sys\nopen({str(noted)!r}, 'a').write(repr(sys.argv))\nos.execv({real!r}, sys.argv)\n"
    monkeypatch.setenv("PATH", f"{a_program(tmp_path / 'bin', 'pg_restore', script)}:{os.environ['PATH']}")
    drill_url(modest_role)
    assert backups.drill().status == "proven"
    said = noted.read_text()
    assert "--dbname" in said
    assert "drill-secret-9b2" not in said


# Encryption -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A key pair of this test's own."""
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed")
    home = Path(tempfile.mkdtemp(prefix="mq-gpg-"))  # gpg's agent has a socket there, whose path must be short
    monkeypatch.setenv("GNUPGHOME", str(home))
    words = ["gpg", "--batch", "--passphrase", "", "--quick-gen-key", "backups@example.com", "default", "default", "0"]
    subprocess.run(words, check=True, capture_output=True)
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "BACKUP_ENCRYPT": True}
    settings.DBBACKUP_GPG_RECIPIENT = "backups@example.com"
    settings.DBBACKUP_GPG_ALWAYS_TRUST = True
    yield home
    subprocess.run(["gpgconf", "--kill", "all"], check=False)
    shutil.rmtree(home, ignore_errors=True)


def test_an_encrypted_backup_is_proven_by_who_has_the_key(key: Path, folder: Path) -> None:
    made = backups.back_up()
    assert made.encrypted
    assert made.name.endswith(".gpg")
    content = (folder / made.name).read_bytes()
    assert b"PGDMP" not in content
    with contextlib.suppress(gzip.BadGzipFile):
        gzip.decompress(content)
        raise AssertionError("it is not encrypted")
    drill = backups.drill()
    assert drill.status == "proven", drill.reason

    damaged = bytearray(content)
    damaged[-200] ^= 0xFF
    rewrite(folder, made, bytes(damaged), noted=True)
    refuted = backups.drill()
    assert refuted.status == "failed", refuted.reason
    rewrite(folder, made, content, noted=True)

    subprocess.run(["gpgconf", "--kill", "all"], check=True)
    shutil.rmtree(key / "private-keys-v1.d")
    without = backups.drill()
    assert without.status == "not_proven"
    assert "its key cannot be used here" in without.reason


def test_encryption_for_nobody_is_refused(folder: Path, settings: Any) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "BACKUP_ENCRYPT": True}
    with pytest.raises(ConfigurationError, match="DBBACKUP_GPG_RECIPIENT names no key"):
        backups.back_up()
