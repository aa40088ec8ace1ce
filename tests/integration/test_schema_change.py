"""A release rolls out: new code on the schema of the release before, and rows that old code writes to the new schema.

The schema goes back and forth in a database that these tests have for themselves.
"""

import signal
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.db.migrations.loader import MigrationLoader

from machinequeue.machines.schema import CreateRequest
from machinequeue.models import Machine
from machinequeue.records import runs
from tests import services
from tests.integration.conftest import _world
from tests.waiting import until
from tests.workshop import tasks
from tests.world import APP, IMAGE, World

FIRST = "0001_initial"


def migrate(name: str = "") -> None:
    call_command("migrate", *(["machinequeue", name] if name else []), verbosity=0, interactive=False)


def names() -> list[str]:
    """Our migrations, oldest first."""
    loader = MigrationLoader(None)
    return [
        name
        for app, name in loader.graph.forwards_plan(loader.graph.leaf_nodes("machinequeue")[0])
        if app == "machinequeue"
    ]


BEFORE, LATEST = names()[-2:]
OLD, MISSING = "0003_pace", "0004_circuits_and_memory"
"""A schema with which dispatchers and machines of this code can do nothing, and what they miss first."""
AWAITED = f"migrations are not applied: machinequeue.{MISSING}"


@pytest.fixture(scope="module")
def own_database(tables: None, django_db_blocker: Any) -> Iterator[None]:
    """A migrated database that no other test looks at, in the place of theirs."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite rewrites a table to change it, so nobody rolls a release out over one that is in use")
    theirs = connection.settings_dict["NAME"]
    with django_db_blocker.unblock(), services.postgres_database() as url:
        connections.close_all()
        connection.settings_dict["NAME"] = url.rpartition("/")[2]
        try:
            migrate()
            yield
        finally:
            connections.close_all()
            connection.settings_dict["NAME"] = theirs


@pytest.fixture
def shop(own_database: None, django_db_blocker: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A world of this test alone, in that database."""
    with _world(tmp_path, request, django_db_blocker) as made:
        yield made
        made.end_dispatchers()
        migrate(LATEST)


@pytest.fixture
def old_shop(shop: World) -> World:
    """The same, with the old schema."""
    migrate(OLD)
    return shop


def test_a_site_of_the_new_release_works_before_the_latest_migration(shop: World) -> None:
    migrate(BEFORE)
    first = tasks.add.enqueue(1, 2)
    many = tasks.add.enqueue_many([((1,), {}), ((2,), {"b": 3})])
    for result in (first, *many):
        result.refresh()
        assert result.status == "READY"
        assert tasks.add.get_result(result.id).args == result.args
    assert first.why().startswith("waiting: no dispatcher is running")
    assert many[0].cancel()
    many[0].refresh()
    assert many[0].run_status == "CANCELLED"
    shop.dispatcher()
    migrate(LATEST)
    shop.finish(first, many[1])
    assert [first.return_value, many[1].return_value] == [3, 5]


@pytest.mark.slow
def test_a_dispatcher_that_starts_before_the_migration_says_so_and_launches_after_it(old_shop: World) -> None:
    result = tasks.add.enqueue(1, 2)
    dispatcher = old_shop.dispatcher()
    until(lambda: AWAITED in result.why(), 60, lambda: f"{result.why()}\n{dispatcher.said}")
    assert result.why().endswith("run manage.py migrate")
    until(lambda: "database.outdated" in dispatcher.said, 60, lambda: dispatcher.said)
    assert AWAITED in dispatcher.said
    assert "Traceback" not in dispatcher.said
    migrate(LATEST)
    old_shop.finish(result)
    assert dispatcher.end(signal.SIGTERM) == 0


def test_a_dispatcher_lives_on_when_the_schema_goes_back_under_it(shop: World) -> None:
    dispatcher = shop.dispatcher()
    shop.finish(tasks.add.enqueue(1))
    migrate(OLD)
    result = tasks.add.enqueue(1, 2)
    # It may have looked while the schema went back; what it says in the end is what is missed.
    until(lambda: AWAITED in result.why(), 60, lambda: f"{result.why()}\n{dispatcher.said}")
    assert "database.outdated" in dispatcher.said
    migrate(LATEST)
    shop.finish(result)
    assert result.return_value == 3


@pytest.mark.slow
def test_a_machine_that_boots_before_the_migration_strands_no_run(old_shop: World) -> None:
    result = tasks.add.enqueue(1, 2)
    old = rows_of(OLD, "Machine")
    run = runs.get(uuid.UUID(result.id))
    assert run is not None
    launched = old.objects.create(
        name="mq-early",
        app=APP,
        image=IMAGE,
        backend=run.backend,
        queue=run.queue,
        spec=run.spec,
        spec_key=run.spec_key,
        deadline_at=runs.database_now() + timedelta(hours=1),
    )
    config = {
        "image": IMAGE,
        "init": {"cmd": ["python", "manage.py", "mq_run", launched.name]},
        "env": {"DJANGO_SETTINGS_MODULE": "tests.workshop.settings"},
        "metadata": {"mq_machine": launched.name},
        "auto_destroy": True,
        "restart": {"policy": "no"},
    }
    with old_shop.emulator.client() as client:
        created = client.create(CreateRequest(name=launched.name, region="iad", config=config))
        until(lambda: client.get(created.id).state == "destroyed", 60, lambda: old_shop.emulator.output(created.id))
    said = old_shop.emulator.output(created.id)
    assert AWAITED in said
    assert "Traceback" not in said
    result.refresh()
    assert (result.status, result.attempts) == ("READY", 0)
    migrate(LATEST)
    old_shop.dispatcher()
    old_shop.finish(result)
    assert [each["status"] for each in result.history] == ["succeeded"]
    old_shop.all_gone()


def rows_of(migration: str, model: str) -> Any:
    """A model as the code of that migration knew it."""
    return MigrationLoader(None).project_state(("machinequeue", migration)).apps.get_model("machinequeue", model)


def test_what_code_of_the_first_release_writes_is_executed_by_the_new(shop: World) -> None:
    sample = tasks.add.enqueue(1)
    new = runs.get(uuid.UUID(sample.id))
    assert new is not None
    sample.cancel()
    columns = ("task", "backend", "queue", "spec", "spec_key", "timeout", "max_attempts")
    same = {name: getattr(new, name) for name in columns}
    ids = [runs.uuid7() for _ in range(2)]
    rows_of(FIRST, "TaskRun").objects.bulk_create(
        [rows_of(FIRST, "TaskRun")(id=each, args=[20], kwargs={"b": 3}, **same) for each in ids]
    )
    # And a dispatcher of that release had reserved a machine, and died.
    rows_of(FIRST, "Machine").objects.create(
        name="mq-old",
        app=APP,
        image=IMAGE,
        backend=new.backend,
        queue=new.queue,
        spec=new.spec,
        spec_key=new.spec_key,
        deadline_at=runs.database_now() + timedelta(hours=1),
    )
    rows_of(FIRST, "Queue").objects.create(backend=new.backend, name=new.queue)
    rows_of(FIRST, "TaskProfile").objects.create(task=new.task, runs=3, run_seconds=0.5)
    shop.dispatcher()
    results = [tasks.add.get_result(str(each)) for each in ids]
    shop.finish(*results)
    assert [result.return_value for result in results] == [23, 23]
    assert Machine.objects.filter(name="mq-old").exists()
