"""The few statements of the hot path, in the two dialects that differ: PostgreSQL and SQLite.

The ORM says everything else. These are by hand because an enqueue, a claim and an outcome must each be one
round trip and one commit.
"""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.dateparse import parse_datetime

from machinequeue.models import TaskRun


def alias() -> str:
    """The database that holds our tables."""
    return router.db_for_write(TaskRun)


def connection() -> BaseDatabaseWrapper:
    """This thread's connection to it."""
    return connections[alias()]


def is_postgresql(connection: BaseDatabaseWrapper) -> bool:
    return connection.vendor == "postgresql"


def now(connection: BaseDatabaseWrapper) -> str:
    """The database's clock, as SQL."""
    return "STATEMENT_TIMESTAMP()" if is_postgresql(connection) else "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')"


def in_seconds(connection: BaseDatabaseWrapper) -> str:
    """A time so many seconds from now, as SQL with one parameter (a number of seconds)."""
    if is_postgresql(connection):
        return "STATEMENT_TIMESTAMP() + %s * INTERVAL '1 second'"
    return "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW', %s || ' seconds')"


def key(connection: BaseDatabaseWrapper, value: uuid.UUID) -> Any:
    """A uuid as a parameter."""
    return value if connection.features.has_native_uuid_field else value.hex


def moment(connection: BaseDatabaseWrapper, value: datetime | None) -> Any:
    """A time as a parameter."""
    return (
        value
        if value is None or is_postgresql(connection)
        else value.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
    )


_encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def dumps(value: Any) -> str:
    """JSON text as a parameter of a JSON column."""
    return _encoder.encode(value)


def read_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def read_time(value: Any) -> datetime | None:
    """A time as the driver gives it; SQLite's have no zone and are UTC."""
    parsed = parse_datetime(value) if isinstance(value, str) else value
    return parsed.replace(tzinfo=UTC) if parsed is not None and parsed.tzinfo is None else parsed


def read_key(value: Any) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


def execute(connection: BaseDatabaseWrapper, statement: str, params: Sequence[Any]) -> int:
    """Run a statement; the number of rows it touched."""
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        return int(cursor.rowcount)


def fetch_all(connection: BaseDatabaseWrapper, statement: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Run a statement; all of its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        return list(cursor.fetchall())


def fetch(connection: BaseDatabaseWrapper, statement: str, params: Sequence[Any]) -> tuple[Any, ...] | None:
    """Run a statement; its first row."""
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        row: tuple[Any, ...] | None = cursor.fetchone()
        return row
