"""The database server itself: what it is, how far away, how many connections it has."""

import contextlib
import time
from dataclasses import dataclass

from machinequeue.records import sql

ROUND_TRIPS = 5


@dataclass(frozen=True)
class Server:
    """What was found out by a handful of statements. `milliseconds` is the median of some round trips."""

    vendor: str
    version: str
    major: int
    milliseconds: float
    pooled: bool
    """Whether something between here and PostgreSQL hands out its connections, as PgBouncer does."""


@dataclass(frozen=True)
class Connections:
    """How many connections PostgreSQL has in all, how many of them are kept for its superusers, how many are taken."""

    most: int
    kept: int
    used: int


def known() -> Server:
    """Ask the server what it is. Raises what Django raises when it cannot be had."""
    connection = sql.connection()
    connection.ensure_connection()
    seconds = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        sql.fetch(connection, "SELECT 1", ())
        seconds.append(time.perf_counter() - began)
    milliseconds = sorted(seconds)[ROUND_TRIPS // 2] * 1000
    if not sql.is_postgresql(connection):
        (version,) = sql.fetch(connection, "SELECT sqlite_version()", ()) or ("",)
        return Server(connection.vendor, version, int(version.partition(".")[0] or 0), milliseconds, pooled=False)
    row = sql.fetch(connection, "SELECT current_setting('server_version_num')::int, pg_backend_pid()", ())
    number, pid = row or (0, 0)
    # A pooler answers the handshake itself, with a process id of its own invention.
    pooled = connection.connection.info.backend_pid != pid
    return Server("postgresql", f"{number // 10_000}.{number % 10_000}", number // 10_000, milliseconds, pooled)


def connections() -> Connections:
    """Of PostgreSQL only."""
    row = sql.fetch(
        sql.connection(),
        "SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int, "
        "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')",
        (),
    )
    assert row is not None
    return Connections(*row)


def journal_mode() -> str:
    """How the SQLite file is written, "wal" or another word."""
    row = sql.fetch(sql.connection(), "PRAGMA journal_mode", ())
    return str(row[0]) if row else ""


def notify(channel: str, payload: str) -> None:
    """Notify who LISTENs on PostgreSQL, over a connection made for it: what the same one says comes back anyway."""
    with contextlib.closing(sql.connection().copy()) as other:
        sql.execute(other, "SELECT pg_notify(%s, %s)", [channel, payload])
