"""Backups of the real database to a real folder and a real S3 endpoint, whole or not at all."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import re
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from dbbackup import settings as dbbackup_settings
from django.contrib.auth.models import Group
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, default_storage
from django.db import connection

from machinequeue import backups, telemetry
from machinequeue.backups import dump, storage, streams
from machinequeue.errors import BackupFailed, ConfigurationError
from machinequeue.models import Backup
from machinequeue.records import backups as rows
from tests.backups.storages import SECRET, Bucket
from tests.waiting import until
from tests.world import database_url

pytestmark = pytest.mark.django_db(transaction=True)
POSTGRESQL = connection.vendor == "postgresql"
only_postgresql = pytest.mark.skipif(not POSTGRESQL, reason="pg_dump is PostgreSQL's")
GROUPS = "public.auth_group" if POSTGRESQL else "auth_group"


def a_program(folder: Path, name: str, script: str) -> Path:
    """A program of this name in a folder for PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{script}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return folder


def test_a_backup_is_stored_and_recorded(folder: Path) -> None:
    Group.objects.bulk_create(Group(name=f"group {number}") for number in range(7))
    made = backups.back_up()
    stored = folder / made.name
    assert (made.status, made.database, made.kind, made.error) == ("succeeded", "default", "database", "")
    assert made.size_bytes == stored.stat().st_size > 1000
    with stored.open("rb") as file:
        assert made.sha256 == hashlib.file_digest(file, "sha256").hexdigest()
    assert made.counts is not None
    assert made.counts[GROUPS] == 7
    assert made.server_version
    assert made.finished_at is not None
    beside = json.loads((folder / f"{made.name}.metadata").read_text())
    assert beside["engine"] == connection.settings_dict["ENGINE"]
    assert (beside["sha256"], beside["counts"]) == (made.sha256, made.counts)
    assert rows.newest() == made
    assert rows.last_failure() is None


def test_rows_written_meanwhile_are_in_neither_the_counts_nor_the_dump(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the counts and the dump somebody writes; the drill would find one row more if they were not one."""
    Group.objects.create(name="before")
    name = "count_postgresql" if POSTGRESQL else "count_sqlite"
    count = getattr(dump, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        found = count(*args, **kwargs)
        writer = threading.Thread(target=_write)
        writer.start()
        writer.join()
        return found

    def _write() -> None:
        Group.objects.create(name="meanwhile")
        connection.close()

    with monkeypatch.context() as patch:
        patch.setattr(dump, name, counted)
        made = backups.back_up()
    assert Group.objects.filter(name="meanwhile").exists()
    assert made.counts is not None
    assert made.counts[GROUPS] == 1
    drill = backups.drill()
    assert drill.status == "proven", drill.reason


def test_to_s3_and_back(in_bucket: Bucket) -> None:
    made = backups.back_up()
    assert in_bucket.keys() == [made.name, f"{made.name}.metadata"]
    drill = backups.drill()
    assert drill.status == "proven", drill.reason


def test_a_store_that_refuses_new_checksums_gets_none(in_bucket: Bucket) -> None:
    """Tigris, R2, B2 and MinIO know neither the headers nor the trailers that boto3 sends by itself."""
    made = backups.back_up()
    assert backups.drill().status == "proven"
    assert in_bucket.keys()[0] == made.name
    for request in in_bucket.requests:
        new = [name for name in request if "CHECKSUM" in name or name == "HTTP_X_AMZ_TRAILER"]
        assert new == [], request["PATH_INFO"]
        assert "aws-chunked" not in request.get("HTTP_CONTENT_ENCODING", "")


def test_without_the_documented_settings_boto3_sends_them(bucket: Bucket, settings: Any) -> None:
    """So that the test above can fail."""
    settings.STORAGES = {**settings.STORAGES, "dbbackup": bucket.storage(client_config=None, addressing_style="path")}
    backups.back_up()
    assert any("CHECKSUM" in name for request in bucket.requests for name in request)


def test_a_storage_that_is_down_leaves_a_failed_row(bucket: Bucket, settings: Any) -> None:
    settings.STORAGES = {**settings.STORAGES, "dbbackup": bucket.storage(endpoint_url="http://127.0.0.1:9")}
    with pytest.raises(BackupFailed, match="Could not connect to the endpoint URL"):
        backups.back_up()
    assert rows.newest() is None
    failed = rows.last_failure()
    assert failed is not None
    assert "Could not connect" in failed.error
    assert SECRET not in failed.error


def test_a_bucket_that_is_gone_leaves_a_failed_row_with_the_reason(in_bucket: Bucket) -> None:
    in_bucket.client.delete_bucket(Bucket=in_bucket.name)
    with pytest.raises(BackupFailed, match="NoSuchBucket"):
        backups.back_up()
    assert rows.last_failure() is not None


@only_postgresql
def test_a_pg_dump_that_breaks_off_leaves_nothing(
    in_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys\nsys.stdout.buffer.write(b'PGDMP' + bytes(9_000_000))\nsys.stdout.flush()\n"
        "sys.exit('pg_dump: error: server closed the connection')\n"
    )
    monkeypatch.setenv("PATH", f"{a_program(tmp_path / 'bin', 'pg_dump', script)}:{os.environ['PATH']}")
    with pytest.raises(BackupFailed, match="server closed the connection"):
        backups.back_up()
    assert in_bucket.keys() == []
    assert in_bucket.uploads() == []
    failed = rows.last_failure()
    assert failed is not None
    assert "exit code 1" in failed.error
    assert failed.removed_at is not None


@only_postgresql
def test_a_missing_pg_dump_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupFailed, match="pg_dump could not be started: No such file"):
        backups.back_up()
    assert list(folder.glob("*")) == []


@only_postgresql
def test_the_password_is_in_no_argv(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = tmp_path / "noted.json"
    script = (
        f"import json, os, sys\njson.dump([sys.argv, os.environ.get('PGPASSWORD')], open({str(noted)!r}, 'w'))\n"
        "sys.exit('pg_dump: error: told to fail')\n"
    )
    monkeypatch.setenv("PATH", f"{a_program(tmp_path / 'bin', 'pg_dump', script)}:{os.environ['PATH']}")
    monkeypatch.setitem(connection.settings_dict, "PASSWORD", "db-secret-77aa")
    with pytest.raises(BackupFailed) as caught:
        backups.back_up()
    argv, password = json.loads(noted.read_text())
    assert password == "db-secret-77aa"
    assert "db-secret-77aa" not in " ".join(argv)
    assert "db-secret-77aa" not in f"{caught.value}{caught.value!r}"
    assert not Backup.objects.filter(error__contains="db-secret").exists()


def test_a_full_disk_is_said_and_leaves_nothing(folder: Path) -> None:
    """The folder's own file system is full in the middle of the file: a limit of the process plays it."""
    code = (
        "import os, resource, signal, django\nos.environ['DJANGO_SETTINGS_MODULE'] = 'tests.backups.project'\n"
        "django.setup()\nfrom machinequeue import backups\nfrom machinequeue.backups import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nput = storage.put\n"
        "def limited(*args):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "    try:\n        return put(*args)\n"
        "    finally:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "storage.put = limited\n"
        "try:\n    backups.back_up()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "DATABASE_URL": database_url(), "BACKUPS": str(folder), "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("BackupFailed"), done.stderr
    assert "large" in done.stdout or "full" in done.stdout, done.stdout
    assert [file.name for file in folder.glob("*")] == []
    failed = rows.last_failure()
    assert failed is not None
    assert failed.removed_at is not None


def test_what_a_killed_backup_left_is_removed_by_the_next(folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the file: no process is left that could say so."""
    gate = tmp_path / "half"
    code = (
        "import os, django\nos.environ['DJANGO_SETTINGS_MODULE'] = 'tests.backups.project'\ndjango.setup()\n"
        "from machinequeue import backups\nfrom machinequeue.backups import streams\n"
        "piece = streams.Measured.piece\n"
        "def slow(self):\n"
        f"    made = piece(self)\n    if self.size > 0 and not made:\n        open({str(gate)!r}, 'w').close()\n"
        "        import signal\n        signal.pause()\n    return made\n"
        "streams.Measured.piece = slow\nbackups.back_up()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "DATABASE_URL": database_url(),
            "BACKUPS": str(folder),
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": str(Path.cwd()),
        },
    )
    try:
        until(lambda: gate.exists() or process.poll() is not None, 60)
        assert gate.exists()
    finally:
        process.kill()
        process.wait()
    half = Backup.objects.get()
    assert half.status == "running"
    assert (folder / half.name).exists()
    assert rows.newest() is None
    Backup.objects.update(started_at=rows.recent()[0].now - rows.ABANDONED * 2)  # type: ignore[attr-defined]
    made = backups.back_up()
    half.refresh_from_db()
    assert (half.status, half.error) == ("failed", rows.LOST)
    assert half.removed_at is not None
    assert sorted(file.name for file in folder.iterdir()) == [made.name, f"{made.name}.metadata"]


def test_a_backup_that_was_given_up_meanwhile_is_whole_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = storage.describe

    def late(*args: Any) -> None:
        describe(*args)
        rows.fail(Backup.objects.get().pk, rows.LOST)

    monkeypatch.setattr(storage, "describe", late)
    made = backups.back_up()
    assert (made.status, made.error) == ("succeeded", "")
    assert (folder / made.name).exists()


def test_a_backup_whose_file_others_removed_meanwhile_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(telemetry, "emit", lambda name, **_: said.append(name))
    describe = storage.describe

    def too_late(*args: Any) -> None:
        describe(*args)
        left = Backup.objects.get()
        rows.fail(left.pk, rows.LOST)
        rows.removed(left.pk)

    monkeypatch.setattr(storage, "describe", too_late)
    with pytest.raises(BackupFailed, match="took it for lost"):
        backups.back_up()
    assert said == ["backup.failed"]
    assert Backup.objects.get().status == "failed"
    assert [file.name for file in folder.iterdir()] == []


def test_two_backups_of_one_second_have_two_names(
    folder: Path, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbbackup_settings, "DATE_FORMAT", "2026-01-01-030000")
    settings.MEDIA_ROOT = tmp_path / "media"
    default_storage.save("a.txt", ContentFile(b"a"))
    one, other, media = backups.back_up().name, backups.back_up().name, backups.back_up_media().name
    stems = [re.sub("-[0-9a-f]{4}[.]", ".", name) for name in (one, other, media)]
    assert stems[0] == stems[1]
    assert one != other
    assert all("2026-01-01-030000." in stem for stem in stems), "the random part is after the time"


def test_parts_of_an_upload_that_was_killed_are_removed(in_bucket: Bucket) -> None:
    """S3 lists no such object and bills its parts for ever."""
    left = rows.start(database="default", kind="database", run_id=None)
    left.name = "default-vm-2026-01-01-030000.psql.bin"
    rows.call(left.pk, left.name)
    in_bucket.client.create_multipart_upload(Bucket=in_bucket.name, Key=left.name)
    assert in_bucket.uploads() == [left.name]
    rows.fail(left.pk, rows.LOST)
    assert backups.sweep() == 1
    assert in_bucket.uploads() == []
    assert backups.sweep() == 0


def test_media_files_are_one_tar(folder: Path, settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "media"
    for name in ("a.txt", "deep/down/b.txt"):
        default_storage.save(name, ContentFile(name.encode()))
    made = backups.back_up_media()
    assert (made.kind, made.counts) == ("media", {"files": 2})
    with tarfile.open(folder / made.name) as tar:
        read = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    assert read == {"a.txt": b"a.txt", "deep/down/b.txt": b"deep/down/b.txt"}


def test_a_media_file_that_cannot_be_read_fails_the_backup(folder: Path, settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "media"
    default_storage.save("a.txt", ContentFile(b"a"))
    (tmp_path / "media/b.txt").symlink_to("nowhere")
    with pytest.raises(BackupFailed, match=r"b\.txt"):
        backups.back_up_media()
    assert [file.name for file in folder.glob("*")] == []


def test_a_storage_whose_connection_breaks_fails_the_backup(
    folder: Path, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the pipe of the tar that broke: what was packed until then is no backup."""
    settings.MEDIA_ROOT = tmp_path / "media"
    for name in ("a.txt", "b.txt"):
        default_storage.save(name, ContentFile(b"x" * 1000))
    opened = default_storage.open

    def breaks(name: str, mode: str = "rb") -> Any:
        if name == "b.txt":
            raise BrokenPipeError("the connection is gone")
        return opened(name, mode)

    monkeypatch.setattr(default_storage, "open", breaks)
    with pytest.raises(BackupFailed, match="the connection is gone"):
        backups.back_up_media()
    assert [file.name for file in folder.glob("*")] == []


def test_a_description_that_was_half_written_stops_no_later_backup(folder: Path, settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "media"
    default_storage.save("a.txt", ContentFile(b"a"))
    left = rows.start(database="default", kind="database", run_id=None)
    left.name = "default-vm-2026-01-01-030000.psql.bin"
    rows.call(left.pk, left.name)
    folder.mkdir(exist_ok=True)
    (folder / left.name).write_bytes(b"half")
    (folder / f"{left.name}.metadata").write_bytes(b"")
    rows.fail(left.pk, rows.LOST)
    made = backups.back_up_media()
    assert sorted(file.name for file in folder.glob("*")) == [made.name, f"{made.name}.metadata"]


def test_a_source_whose_pipe_breaks_is_no_end_of_it() -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise BrokenPipeError("of the storage")

    with (
        io.BufferedReader(streams.Command(["cat"], source=io.BufferedReader(Broken()))) as stream,
        pytest.raises(BrokenPipeError, match="of the storage"),
    ):
        stream.read()


def test_unknown_databases_and_no_storage_are_said_before_there_is_a_row(settings: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"DATABASES has no 'defualt'. Did you mean 'default'"):
        backups.back_up("defualt")
    with pytest.raises(ConfigurationError, match="STORAGES has no 'dbbackup'"):
        backups.back_up()
    assert not Backup.objects.exists()


def test_old_backups_are_removed_but_for_the_newest_proven(folder: Path, settings: Any) -> None:
    settings.DBBACKUP_CLEANUP_KEEP = 1
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "BACKUP_DAILY": 0, "BACKUP_WEEKLY": 0, "BACKUP_MONTHLY": 0}
    storage = FileSystemStorage(location=folder)
    made = []
    for number in range(4):
        name = f"default-vm-2026-01-0{number + 1}-030000.psql.bin"
        storage.save(name, ContentFile(b"x"))
        storage.save(f"{name}.metadata", ContentFile(b"{}"))
        row = rows.start(database="default", kind="database", run_id=None)
        row.name = name
        rows.call(row.pk, name)
        rows.succeed(row.pk, seconds=1, size_bytes=1, sha256="0" * 64, counts={})
        made.append(row)
    drill = rows.start_drill(made[1].pk, None)
    rows.finish_drill(drill.pk, "proven", "")  # type: ignore[arg-type]
    assert backups.prune() == 2
    left = {f"{made[number].name}{suffix}" for number in (1, 3) for suffix in ("", ".metadata")}
    assert {file.name for file in folder.iterdir()} == left
    assert [each.pk for each in rows.stored("default")] == [made[3].pk, made[1].pk]
    assert backups.prune() == 0


# Streams --------------------------------------------------------------------------------------------------------------


def test_gzip_a_piece_at_a_time() -> None:
    content = random.Random(7).randbytes(3_000_000) + bytes(3_000_000)
    with io.BufferedReader(streams.Compressed(io.BytesIO(content))) as stream:
        packed = stream.read()
    assert gzip.decompress(packed) == content
    out = io.BytesIO()
    streams.expand(io.BytesIO(packed), out)
    assert out.getvalue() == content
    for damaged, words in ((packed[:-9], "middle"), (packed[:100] + b"?" + packed[101:], "decompressed")):
        with pytest.raises(Exception, match=words):
            streams.expand(io.BytesIO(damaged), io.BytesIO())


def test_a_source_that_fails_ends_the_program_that_reads_it() -> None:
    class Torn(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise OSError("torn")

    with (
        io.BufferedReader(streams.Command(["cat"], source=io.BufferedReader(Torn()))) as stream,
        pytest.raises(OSError, match="torn"),
    ):
        stream.read()


def test_sqlite_is_copied_while_others_write(tmp_path: Path) -> None:
    file = tmp_path / "a.sqlite3"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE t (x)")
        raw.execute('CREATE TABLE "odd ""name" (x)')
        raw.execute("CREATE VIRTUAL TABLE search USING fts5(words)")
        raw.execute("INSERT INTO t VALUES (1)")
        assert dump.count_sqlite(raw)["t"] == 1
        assert dump.count_sqlite(raw)['odd "name'] == 0
        assert "search" not in dump.count_sqlite(raw)


@only_postgresql
def test_the_time_limits_of_web_requests_are_not_those_of_a_backup(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ("statement_timeout", "idle_in_transaction_session_timeout")
    count, found = dump.count_postgresql, []

    def counted(cursor: Any, **kwargs: Any) -> Any:
        cursor.execute("SELECT current_setting(%s), current_setting(%s)", limits)
        found.append(cursor.fetchone())
        return count(cursor, **kwargs)

    options = {**connection.settings_dict["OPTIONS"], "options": " ".join(f"-c {name}=60000" for name in limits)}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    monkeypatch.setattr(dump, "count_postgresql", counted)
    backups.back_up()
    assert found == [("0", "0")]
