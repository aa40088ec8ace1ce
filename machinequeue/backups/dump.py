"""A database as a stream of bytes, and how many rows each table has in it: both of one snapshot."""

import contextlib
import io
import os
import shlex
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from machinequeue import conf
from machinequeue.backups.streams import Command
from machinequeue.errors import BackupFailed, ConfigurationError

BINARY = "dbbackup.db.postgresql.PgDumpBinaryConnector"
SQLITE = "dbbackup.db.sqlite.SqliteBackupConnector"


@dataclass
class Dump:
    """A dump that is being read."""

    stream: IO[bytes]
    counts: dict[str, int]
    server_version: str
    compressed: bool
    """Whether the bytes are compressed as they come."""


def connector(database: str) -> Any:
    """django-dbbackup's connector for this database, with what DBBACKUP_CONNECTORS says of it.

    PostgreSQL is dumped in pg_dump's custom format and SQLite by its backup API, whatever connector is set, for these
    are the ones that a drill can restore. Raises ConfigurationError.
    """
    if database not in connections.settings:
        raise ConfigurationError(f"DATABASES has no {database!r}.{conf.suggest(database, connections.settings)}")
    from dbbackup.db.base import get_connector

    vendor = connections[database].vendor
    if vendor not in ("postgresql", "sqlite"):
        raise ConfigurationError(
            f"DATABASES[{database!r}] is {vendor}; backups are of PostgreSQL and SQLite. "
            "Use dbbackup's own command for it."
        )
    return get_connector(database, connector_path=BINARY if vendor == "postgresql" else SQLITE)


@contextlib.contextmanager
def open_dump(database: str) -> Iterator[Dump]:
    """The database as it is now. Raises BackupFailed, also from reading the stream, when it could not be dumped."""
    known = connector(database)
    with _own_connection(database) as connection:
        opened = _postgresql(known, connection) if connection.vendor == "postgresql" else _sqlite(connection)
        with opened as dump:
            yield dump


@contextlib.contextmanager
def _own_connection(database: str) -> Iterator[BaseDatabaseWrapper]:
    """Another connection than this thread's, whose transaction is none of ours."""
    connection: BaseDatabaseWrapper = connections.create_connection(database)
    connection.inc_thread_sharing()
    try:
        yield connection
    finally:
        connection.close()


# PostgreSQL -----------------------------------------------------------------------------------------------------------

TABLES = r"""
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                  AND d.deptype = 'e')
ORDER BY 1, 2
"""
"""Tables that hold rows of their own. A partitioned table's are in its partitions, an extension's are not dumped."""


@contextlib.contextmanager
def _postgresql(known: Any, connection: BaseDatabaseWrapper) -> Iterator[Dump]:
    connection.ensure_connection()
    connection.set_autocommit(False)
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # What bounds the queries of a web request must not end the count of a large table, or the wait for pg_dump.
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        cursor.execute("SELECT pg_export_snapshot(), current_setting('server_version')")
        snapshot, version = cursor.fetchone()
        counts = count_postgresql(cursor, schemas=known.schemas or [], exclude=known.exclude)
        # The transaction stays open: others can only join its snapshot while it does.
        with _pg_dump(known, snapshot) as stream:
            yield Dump(stream, counts, version.partition(" ")[0], compressed=True)


def count_postgresql(
    cursor: Any, *, schemas: list[str] | None = None, exclude: list[str] | None = None
) -> dict[str, int]:
    """Rows by table, as schema.table, but for excluded tables, whose rows are not dumped."""
    counts = {}
    cursor.execute(TABLES)
    for schema, table in cursor.fetchall():
        name = f"{schema}.{table}"
        wanted = not schemas or schema in schemas
        if wanted and not any(fnmatchcase(each, pattern) for pattern in exclude or [] for each in (table, name)):
            quoted = ".".join('"{}"'.format(part.replace('"', '""')) for part in (schema, table))
            cursor.execute(f"SELECT count(*) FROM ONLY {quoted}")  # noqa: S608 - a quoted name of the catalogue
            (counts[name],) = cursor.fetchone()
    return counts


@contextlib.contextmanager
def _pg_dump(known: Any, snapshot: str) -> Iterator[IO[bytes]]:
    """What the connector's command writes, piped instead of spooled to disk."""
    known.dump_suffix = f"{known.dump_suffix} --snapshot={snapshot}"
    known.run_command = lambda command, env=None, stdin=None: (Command(shlex.split(command), _env(known, env)), None)
    with io.BufferedReader(known.create_dump()) as stream:
        yield stream


def _env(known: Any, more: Mapping[str, str] | None) -> dict[str, str]:
    return {**(os.environ if known.use_parent_env else {}), **known.env, **(more or {})}


# SQLite ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sqlite(connection: BaseDatabaseWrapper) -> Iterator[Dump]:
    """SQLite's own backup, into a file beside, while this connection's transaction holds the snapshot."""
    connection.ensure_connection()
    raw: Any = connection.connection
    with tempfile.TemporaryDirectory(prefix="mq-backup-") as folder:
        copy = Path(folder) / "copy.sqlite3"
        try:
            raw.execute("BEGIN")
            counts = count_sqlite(raw)
            with contextlib.closing(sqlite3.connect(copy)) as target:
                raw.backup(target)
            raw.rollback()
        except sqlite3.Error as error:
            raise BackupFailed(f"SQLite could not copy {connection.alias!r} to {folder}: {error}.") from error
        with copy.open("rb") as stream:
            yield Dump(stream, counts, sqlite3.sqlite_version, compressed=False)


def count_sqlite(raw: Any) -> dict[str, int]:
    """Rows by table. Virtual tables hold none of their own."""
    listed = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
    names = [name for (name,) in raw.execute(f"{listed} AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name")]
    quoted = {name: '"{}"'.format(name.replace('"', '""')) for name in names}
    counting = {name: f"SELECT count(*) FROM {quoted[name]}" for name in names}  # noqa: S608 - names of the catalogue
    return {name: raw.execute(statement).fetchone()[0] for name, statement in counting.items()}
