"""Old and new code share a database while a release rolls out, so migrations only ever add.

Each operation after the first migration is read from its file: one that could fail the code of the release before fails
here, with the reason.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

APP = "machinequeue"
FIRST = "0001_initial"
HARMLESS = (
    migrations.CreateModel,
    migrations.AddIndex,
    migrations.RemoveIndex,
    migrations.RenameIndex,
    migrations.RemoveConstraint,
    migrations.AlterModelOptions,
    migrations.AlterModelManagers,
)


def fault(operation: Operation, before: ProjectState) -> str:
    """Why the release before could not work with the schema after this operation; empty when it could."""
    what = operation.describe()
    if isinstance(operation, HARMLESS):
        return ""
    if isinstance(operation, migrations.AddField):
        return _added(what, operation.field)
    if isinstance(operation, migrations.AlterField):
        known = before.models[APP, operation.model_name.lower()].fields[operation.name]
        return _altered(what, known, operation.field)
    if isinstance(operation, migrations.RunSQL | migrations.RunPython):
        return "" if operation.reversible else f"{what}: it cannot be undone; give it a reverse"
    return (
        f"{what}: code of the release before may still use what this takes away or renames, or write what this "
        "refuses; add the new beside it now, and take the old away a release later"
    )


def _added(what: str, field: Any) -> str:
    if field.null or field.has_db_default() or field.many_to_many:
        return ""
    return f"{what}: an INSERT of the release before names no such column; make it null or give it a db_default"


def _altered(what: str, known: Any, field: Any) -> str:
    if known.db_parameters(connection)["type"] != field.db_parameters(connection)["type"] and not _is_longer(
        known, field
    ):
        return f"{what}: its type changes under the release before; add another column"
    if known.null and not field.null:
        return f"{what}: the release before may write NULL"
    if known.has_db_default() and not field.has_db_default() and not field.null:
        return f"{what}: the release before leaves the column to its db_default"
    if field.unique and not known.unique:
        return f"{what}: the release before may write the same value twice"
    return ""


def _is_longer(known: Any, field: Any) -> bool:
    texts = (models.CharField, models.TextField)
    if not isinstance(known, texts) or not isinstance(field, texts):
        return False
    return field.max_length is None or (known.max_length is not None and field.max_length >= known.max_length)


def operations() -> Iterator[tuple[str, Operation, ProjectState]]:
    """Each operation after the first migration, with the models as they were before it."""
    loader = MigrationLoader(None)
    for key in loader.graph.forwards_plan(loader.graph.leaf_nodes(APP)[0]):
        if key[0] != APP or key[1] == FIRST:
            continue
        state = loader.project_state(key, at_end=False)
        for number, operation in enumerate(loader.disk_migrations[key].operations):
            yield f"{key[1]}-{number}", operation, state.clone()
            operation.state_forwards(APP, state)


FOUND = [pytest.param(operation, before, id=name) for name, operation, before in operations()]


@pytest.mark.parametrize(("operation", "before"), FOUND)
def test_a_migration_lets_the_release_before_work_on(operation: Operation, before: ProjectState) -> None:
    assert not (why := fault(operation, before)), why


def nothing(apps: Any, schema_editor: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (migrations.RemoveField("taskrun", "reason"), "takes away or renames"),
        (migrations.RenameField("taskrun", "reason", "why"), "takes away or renames"),
        (migrations.DeleteModel("schedule"), "takes away or renames"),
        (migrations.RenameModel("schedule", "plan"), "takes away or renames"),
        (migrations.AlterModelTable("schedule", "plans"), "takes away or renames"),
        (
            migrations.AddConstraint("queue", models.CheckConstraint(condition=models.Q(failures=0), name="none")),
            "write what this refuses",
        ),
        (
            migrations.AddField("taskrun", "colour", models.TextField(default="red")),
            "make it null or give it a db_default",
        ),
        (migrations.AlterField("taskrun", "task", models.CharField(max_length=20)), "its type changes"),
        (migrations.AlterField("taskrun", "timeout", models.IntegerField()), "its type changes"),
        (migrations.AlterField("taskrun", "started_at", models.DateTimeField()), "may write NULL"),
        (migrations.AlterField("taskrun", "reason", models.TextField()), "leaves the column to its db_default"),
        (
            migrations.AlterField("attempt", "boot_id", models.CharField(max_length=32, unique=True)),
            "the same value twice",
        ),
        (migrations.RunSQL("CREATE VIEW v AS SELECT 1"), "it cannot be undone"),
        (migrations.RunPython(nothing), "it cannot be undone"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Operation) else "",
)
def test_a_migration_that_would_fail_the_release_before_is_refused(operation: Operation, why: str) -> None:
    now = MigrationLoader(None).project_state()
    assert why in fault(operation, now)


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddField("taskrun", "colour", models.TextField(null=True)),
        migrations.AddField("taskrun", "colour", models.TextField(db_default="red")),
        migrations.AlterField("taskrun", "task", models.CharField(max_length=400)),
        migrations.AlterField("taskrun", "task", models.TextField()),
        migrations.AlterField("taskrun", "task", models.CharField("path of the task", max_length=255)),
    ],
)
def test_a_migration_that_adds_or_widens_is_let_through(operation: Operation) -> None:
    now = MigrationLoader(None).project_state()
    assert fault(operation, now) == ""


@pytest.mark.django_db
def test_rows_with_the_columns_of_the_first_release_alone_are_taken() -> None:
    """What the database itself says of each column that came later."""
    first = MigrationLoader(None).project_state((APP, FIRST))
    refused = []
    with connection.cursor() as cursor:
        for (app, _), model in first.models.items():
            if app == APP:
                table = model.options.get("db_table") or f"{APP}_{model.name.lower()}"
                known = {field.column for field in first.apps.get_model(APP, model.name)._meta.local_fields}
                columns = connection.introspection.get_table_description(cursor, table)
                needed = {each.name for each in columns if not each.null_ok and each.default is None}
                refused += [f"{table}.{name}" for name in needed - known]
    assert refused == []
