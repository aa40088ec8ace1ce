"""Whether the database has the tables and columns that this code knows."""

from django.db import Error, ProgrammingError
from django.db.migrations.executor import MigrationExecutor

from machinequeue.records import sql

SHOWN = 3


def may_be_missing(error: Error) -> bool:
    """Whether a statement failed for want of a table or a column."""
    return isinstance(error, ProgrammingError) or "no such" in str(error)  # SQLite's are operational errors


def unapplied() -> str:
    """The migrations that this code has and the database has not, in a sentence; empty when there are none."""
    executor = MigrationExecutor(sql.connection())
    names = [f"{step.app_label}.{step.name}" for step, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"migrations are not applied: {', '.join(names[:SHOWN])}{more}; run manage.py migrate"
