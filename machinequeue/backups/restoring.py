"""Restore a backup's file somewhere harmless, and count what came back."""

import contextlib
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.db import DatabaseError, connections

from machinequeue import conf
from machinequeue.backups import throwaway
from machinequeue.backups.dump import count_postgresql, count_sqlite
from machinequeue.backups.streams import run
from machinequeue.backups.throwaway import Place
from machinequeue.errors import BackupFailed, BackupRefuted, ConfigurationError, NotProven

PREFIX = "mq_drill_"
MARK = "machinequeue_drill"
"""A schema that says: everything in this database was put there by a drill."""
LEFT_SECONDS = 86_400
DRILL_URL = (
    "DRILL_DATABASE_URL must be postgresql://user:password@host:port/database, with what is special in a URL "
    "percent-encoded."
)
LOCK = 0x6D715F6472696C6C
"""An advisory lock of PostgreSQL: "mq_drill" in ASCII."""


@dataclass(frozen=True)
class Restored:
    """What a restore brought back."""

    method: str
    counts: dict[str, int]


def restore_sqlite(file: Path) -> Restored:
    """Open the file and read it all. Raises BackupRefuted."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as raw:
            (verdict,) = raw.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise BackupRefuted(f"SQLite says that the restored database is damaged: {verdict}")
            return Restored("sqlite file", count_sqlite(raw))
    except sqlite3.Error as error:
        raise BackupRefuted(f"The restored file is no database that SQLite can read: {error}") from error


def restore_postgresql(file: Path, server_version: str, database: str) -> Restored:
    """Restore into DRILL_DATABASE_URL, else into a server started for it.

    Raises BackupRefuted when that fails, and NotProven when there is no server to restore into: then the file was read
    from end to end, which shows that it is whole, and no more.
    """
    if shutil.which("pg_restore") is None:
        raise NotProven("pg_restore is not installed here. Install postgresql-client in the image.")
    listing = _list(file)
    url = conf.settings().drill_database_url
    if url:
        with _database_of(parse(url), database) as place:
            return Restored("DRILL_DATABASE_URL", _restore(file, place, listing, database))
    folder = throwaway.programs()
    wanted = int(server_version.partition(".")[0] or 0)
    if folder is None:
        _read(file)
        raise NotProven(
            "Only listed and read from end to end: this machine has no initdb and postgres to restore into. Install "
            "the package postgresql in the image, or set DRILL_DATABASE_URL."
        )
    if throwaway.major(folder) < wanted:
        _read(file)
        raise NotProven(
            f"Only listed and read from end to end: the server here is PostgreSQL {throwaway.major(folder)}, and the "
            f"backup is of {wanted}. Install postgresql-{wanted} in the image, or set DRILL_DATABASE_URL."
        )
    with throwaway.server(folder) as empty:
        return Restored("throwaway server", _restore(file, empty, listing, database))


def parse(url: str) -> Place:
    """A database's URL. Raises ConfigurationError, which does not quote it."""
    try:
        parts = urlsplit(url)
        port = str(parts.port or 5432)
    except ValueError:  # which may quote the password: characters such as [ and @ have to be percent-encoded
        raise ConfigurationError(DRILL_URL) from None
    name = unquote(parts.path.lstrip("/"))
    if parts.scheme not in ("postgres", "postgresql") or not parts.hostname or not name:
        raise ConfigurationError(DRILL_URL)
    options = {key: value for key, value in parse_qsl(parts.query) if key in ("sslmode", "sslrootcert")}
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Place(unquote(parts.hostname), port, user, password, name, options)


# What pg_restore does -------------------------------------------------------------------------------------------------


def _list(file: Path) -> str:
    try:
        return run(["pg_restore", "--list", str(file)])
    except BackupFailed as error:
        if "unsupported version" in str(error):
            raise NotProven(f"{error}. Install the client of the server's version in the image.") from error
        raise BackupRefuted(f"It cannot be listed, so it cannot be restored. {error}") from error


def _read(file: Path) -> None:
    try:
        run(["pg_restore", "--file=/dev/null", str(file)])
    except BackupFailed as error:
        raise BackupRefuted(f"It cannot be read to its end. {error}") from error


def _restore(file: Path, place: Place, listing: str, database: str) -> dict[str, int]:
    with _connected(place, database) as cursor:
        _need_extensions(cursor, listing)
    # What replicates is not tried here: it needs rights that a drill has not, and subscribers that it must not become.
    without = ["--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions"]
    try:
        run(["pg_restore", *without, "--exit-on-error", f"--dbname={place.name}", str(file)], env=place.env())
    except BackupFailed as error:
        raise BackupRefuted(f"It does not restore. {error}") from error
    with _connected(place, database) as cursor:
        return count_postgresql(cursor)


def _need_extensions(cursor: Any, listing: str) -> None:
    wanted = set(re.findall(r"^\d+; \d+ \d+ EXTENSION - (\S+)", listing, re.MULTILINE))
    cursor.execute("SELECT name FROM pg_available_extensions")
    if missing := wanted - {name for (name,) in cursor.fetchall()}:
        raise NotProven(
            f"The server to restore into lacks the extension {', '.join(sorted(missing))}. Install it there, or set "
            "DRILL_DATABASE_URL to a server that has it."
        )


@contextlib.contextmanager
def _connected(place: Place, database: str) -> Iterator[Any]:
    """A cursor there, through the driver that the project uses for the database itself."""
    ours = connections[database]
    known = {**ours.settings_dict, "TEST": {}, "OPTIONS": dict(place.options), "CONN_MAX_AGE": 0}
    known |= {"HOST": place.host, "PORT": place.port, "USER": place.user, "PASSWORD": place.password}
    connection = type(ours)({**known, "NAME": place.name}, alias=MARK)
    try:
        with connection.cursor() as cursor:
            yield cursor
    except DatabaseError as error:
        if connection.connection is None:
            raise NotProven(f"The server to restore into cannot be reached: {str(error).strip()}") from error
        raise
    finally:
        connection.close()


# A database on a server that others use too ---------------------------------------------------------------------------


@contextlib.contextmanager
def _database_of(place: Place, database: str) -> Iterator[Place]:
    """A database of this drill's own on that server, or else the one that is named, if nothing of others is in it."""
    with _connected(place, database) as cursor:
        cursor.execute("SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user")
        may_create = bool(cursor.fetchone()[0])
        if may_create:
            _drop_left(cursor)
            name = f"{PREFIX}{int(time.time())}_{secrets.token_hex(4)}"
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    if may_create:
        try:
            yield replace(place, name=name)
        finally:
            with _connected(place, database) as cursor:
                cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        return
    with _connected(place, database) as guard:
        # Another drill may be at it, as of another database of the same night: held until this connection closes.
        guard.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        with _connected(place, database) as cursor:
            _claim(cursor, place)
        try:
            yield place
        finally:
            with _connected(place, database) as cursor:
                _empty(cursor)


def _drop_left(cursor: Any) -> None:
    """Databases of drills that were killed."""
    cursor.execute("SELECT datname FROM pg_database WHERE datname ~ %s", [f"^{PREFIX}[0-9]+_[0-9a-f]+$"])
    for (name,) in cursor.fetchall():
        if int(name.removeprefix(PREFIX).partition("_")[0]) < time.time() - LEFT_SECONDS:
            cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


SCHEMAS = r"SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"


def _claim(cursor: Any, place: Place) -> None:
    cursor.execute(SCHEMAS)
    schemas = {name for (name,) in cursor.fetchall()}
    if MARK in schemas:  # a drill was killed here
        _empty(cursor)
    elif schemas - {"public"} or _holds_something(cursor):
        raise NotProven(
            f"The database {place.name!r} of DRILL_DATABASE_URL holds something that no drill put there, and is left "
            "alone. Name an empty one, or a role that may create databases."
        )
    cursor.execute(f"CREATE SCHEMA {MARK}")


OBJECTS = """
SELECT EXISTS (
    SELECT FROM (
        SELECT 'pg_class'::regclass AS kind, oid, relnamespace AS place FROM pg_class
        UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace FROM pg_proc
        UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace FROM pg_type
    ) AS thing
    WHERE place = (SELECT oid FROM pg_namespace WHERE nspname = 'public')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = kind AND d.objid = thing.oid AND d.deptype = 'e')
)"""


def _holds_something(cursor: Any) -> bool:
    """Whether anything is in the schema public: a view, a sequence or a function is somebody's as much as a table."""
    cursor.execute(OBJECTS)
    return bool(cursor.fetchone()[0])


def _empty(cursor: Any) -> None:
    """Everything goes, the mark last."""
    cursor.execute(SCHEMAS)
    for (name,) in sorted(cursor.fetchall(), key=lambda row: row[0] == MARK):
        quoted = '"{}"'.format(name.replace('"', '""'))
        cursor.execute(f"DROP SCHEMA {quoted} CASCADE")
        if name == "public":
            cursor.execute("CREATE SCHEMA public")
