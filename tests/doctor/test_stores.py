"""The database and what carries wake-ups, each really in trouble."""

import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection

from machinequeue.doctor import stores
from machinequeue.doctor.findings import Finding, Status
from tests.crash.servers import Redis
from tests.doctor.conftest import SECONDS, TOKEN
from tests.ports import closed_port
from tests.world import database_url

Clinic = Callable[..., None]
Only = Callable[[str], Finding]
Doctor = Callable[..., Any]

database = pytest.mark.django_db(transaction=True)
PASSWORD = "database-password-77c1"


@pytest.fixture
def postgresql() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("it is about PostgreSQL")


def row(text: str, name: str) -> str:
    """The lines of the table about one examination."""
    found = re.search(rf"^\S+\s+{name} .*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, text
    return " ".join(found.group().split())


# The database ---------------------------------------------------------------------------------------------------------


@database
def test_a_database_that_answers(only: Only) -> None:
    found = only("database")
    assert found.status in (Status.OK, Status.WARNING), "a busy computer may be slow"
    assert str(connection.settings_dict["NAME"]) in found.sentence
    assert "pooler" not in found.sentence
    assert only("migrations").status == Status.OK


def test_a_database_that_is_away_hides_nothing_else(doctor: Doctor) -> None:
    done = doctor(DATABASE_URL=f"postgresql://shop:{PASSWORD}@127.0.0.1:{closed_port()}/shop")
    assert done.returncode == 1, done.stderr
    assert row(done.stdout, "database").startswith("FAILURE database The database shop at 127.0.0.1:")
    assert "Check DATABASES" in row(done.stdout, "database")
    for name in ("migrations", "listen", "connections", "dispatcher", "circuits", "queues", "cpu"):
        assert row(done.stdout, name) == f"? {name} Not examined: mend `database` first."
    for name in ("settings", "disk", "app", "token", "regions", "wakeups"):
        assert row(done.stdout, name).startswith("ok "), done.stdout
    assert PASSWORD not in done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_database_that_hangs_is_waited_for_once(doctor: Doctor) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        url = f"postgresql://shop@127.0.0.1:{mute.getsockname()[1]}/shop"
        done = doctor("--timeout", "10", DATABASE_URL=url)
    assert done.returncode == 1, done.stderr
    assert "no answer within 10 s" in row(done.stdout, "database")
    assert row(done.stdout, "dispatcher").startswith("? dispatcher Not examined: mend `database`")
    assert row(done.stdout, "settings").startswith("ok ")


def test_a_database_without_its_tables(doctor: Doctor) -> None:
    done = doctor("--only", "dispatcher", "--only", "migrations", "--only", "queues")
    assert done.returncode == 1, done.stderr
    assert "Migrations are not applied: " in row(done.stdout, "migrations")
    assert "manage.py migrate" in row(done.stdout, "migrations")
    for name in ("dispatcher", "queues"):
        assert row(done.stdout, name) == f"? {name} Not examined: mend `migrations` first."


def test_a_sqlite_file_that_is_not_set_up_for_writers(doctor: Doctor, tmp_path: Path) -> None:
    bare = "from tests.workshop.settings import *\nDATABASES['default']['OPTIONS'] = {}\n"
    (tmp_path / "bare_settings.py").write_text(bare)
    words = ("--only", "sqlite", "--timeout", str(SECONDS))
    done = doctor(*words, DJANGO_SETTINGS_MODULE="bare_settings", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "journal mode is delete" in done.stdout
    assert "IMMEDIATE" in done.stdout
    assert doctor(*words, "--strict", DJANGO_SETTINGS_MODULE="bare_settings", PYTHONPATH=str(tmp_path)).returncode == 1
    assert doctor(*words, "--strict").returncode == 0, "the workshop's own settings are right"
    on_fly = doctor(*words, FLY_MACHINE_ID="148e21")
    assert on_fly.returncode == 1
    assert "never see its rows" in " ".join(on_fly.stdout.split())


@database
@pytest.mark.usefixtures("postgresql")
def test_more_machines_than_the_server_has_connections_for(clinic: Clinic, only: Only) -> None:
    clinic(MAX_MACHINES=1, DATABASE_CONNECTIONS=3)
    assert only("connections").status == Status.OK
    clinic(MAX_MACHINES=5_000)
    found = only("connections")
    assert (found.status, "15000 connections" in found.sentence) == (Status.WARNING, True)
    assert "DATABASE_CONNECTIONS" in found.remedy


# Notifications --------------------------------------------------------------------------------------------------------


@database
@pytest.mark.usefixtures("postgresql")
def test_a_notification_comes_back(only: Only, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "ECHO_SECONDS", SECONDS / 2)
    assert only("listen").status == Status.OK


@contextmanager
def pooler(host: str, port: int) -> Iterator[int]:
    """Like PgBouncer between client and server: it tells a process id of its own, and notifications are lost in it."""
    threads: list[Thread] = []

    def start(work: Callable[..., None], *args: Any) -> None:
        threads.append(Thread(target=work, args=args))
        threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as door:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = door.accept()
                    server = socket.create_connection((host, port))
                    start(_pour, client, server)
                    start(_sieve, server, client)

        start(accept)
        yield int(door.getsockname()[1])
        door.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    _hang_up(source, sink)


def _sieve(server: socket.socket, client: socket.socket) -> None:
    """The server's messages: a letter, a length that counts itself, a body. "A" is a notification, "K" the process."""
    with suppress(OSError, EOFError), server.makefile("rb") as said:
        while head := said.read(5):
            kind, length = struct.unpack("!cI", head)
            body = said.read(length - 4)
            if kind == b"K":
                body = struct.pack("!I", 4_000_000) + body[4:]
            if kind != b"A":
                client.sendall(head + body)
    _hang_up(server, client)


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    ends[0].close()


@database
@pytest.mark.usefixtures("postgresql")
def test_a_pooler_that_swallows_notifications(doctor: Doctor) -> None:
    real = urlsplit(database_url())
    with pooler(real.hostname or "", real.port or 5432) as port:
        through = real._replace(netloc=f"{real.netloc.rpartition(':')[0]}:{port}").geturl()
        plain = {"PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
        words = ("--only", "listen", "--only", "database", "--only", "connections", "--timeout", str(SECONDS))
        done = doctor(*words, DATABASE_URL=through, **plain)
    assert done.returncode == 0, done.stdout + done.stderr
    assert row(done.stdout, "listen").startswith("WARNING listen LISTEN was accepted, but")
    assert "pool_mode session" in row(done.stdout, "listen")
    assert row(done.stdout, "connections").startswith("- connections A pooler shares")


# Wake-ups -------------------------------------------------------------------------------------------------------------


def test_wake_ups_through_a_file(only: Only) -> None:
    assert only("wakeups").status == Status.OK


def test_redis_that_evicts_what_it_was_given(clinic: Clinic, only: Only) -> None:
    with Redis() as server:
        clinic(REDIS_URL=server.url)
        found = only("wakeups")
        assert (found.status, "noeviction" in found.sentence) == (Status.OK, True)
        with server.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        found = only("wakeups")
        assert found.status == Status.WARNING
        assert "allkeys-lru" in found.sentence
        assert "maxmemory-policy to noeviction" in found.remedy


def test_redis_that_is_away_or_wants_another_password(clinic: Clinic, only: Only) -> None:
    clinic(REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:{closed_port()}/0")
    found = only("wakeups")
    assert found.status == Status.WARNING
    assert "REDIS_URL" in found.remedy
    assert PASSWORD not in f"{found}"
    with Redis() as server:
        with server.client() as client:
            client.config_set("requirepass", "another")
        clinic(REDIS_URL=server.url.replace("//", f"//:{PASSWORD}@"))
        found = only("wakeups")
    assert found.status == Status.WARNING
    assert PASSWORD not in f"{found}"


# Dumps ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_pg_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a pg_dump of this version first on PATH; an empty one takes all of them away."""

    def put(version: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        if version:
            program = folder / "pg_dump"
            program.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}'\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return put


@database
@pytest.mark.usefixtures("postgresql")
def test_a_pg_dump_that_is_older_than_the_server(only: Only, with_pg_dump: Callable[[str], None]) -> None:
    with_pg_dump("9.6.24")
    found = only("pg_dump")
    assert (found.status, "pg_dump is of version 9" in found.sentence) == (Status.FAILURE, True)
    assert "postgresql-client-" in found.remedy
    with_pg_dump("99.1")
    assert only("pg_dump").status == Status.OK


@database
@pytest.mark.usefixtures("postgresql")
def test_no_pg_dump(only: Only, settings: Any, with_pg_dump: Callable[[str], None]) -> None:
    with_pg_dump("")
    settings.STORAGES = {name: each for name, each in settings.STORAGES.items() if name != "dbbackup"}
    assert only("pg_dump").status == Status.SKIPPED
    folder = {"BACKEND": "django.core.files.storage.FileSystemStorage"}
    settings.STORAGES = {**settings.STORAGES, "dbbackup": folder}
    assert only("pg_dump").status == Status.FAILURE
