"""What the tests of the rows share: wake-ups that are only noted, and machines that are only rows."""

import contextlib
import secrets
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import setup_databases, teardown_databases

from machinequeue import wakeups
from machinequeue.records import claims, machines, queues, runs
from machinequeue.records.claims import Claim, Claimant
from tests.world import World, world


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The wake-ups that were sent, (backend, queue) each; none leaves the process."""
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(wakeups, "wake_soon", lambda backend, queue: sent.append((backend, queue)))
    return sent


@pytest.fixture
def fresh_wakeups(tmp_path: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Choose the transport of this test: `fresh_wakeups(redis_url="…")`, or a new SQLite file without one."""
    made: list[Any] = []
    make = wakeups._huey

    def noted(*args: Any, **kwargs: Any) -> Any:
        made.append(make(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(wakeups, "_huey", noted)

    def forget() -> None:
        wakeups.flush()
        wakeups._sender.cache_clear()
        wakeups._breaker.closed_at = 0.0

    def choose(redis_url: str = "") -> None:
        settings.MACHINEQUEUE = {"STATE_DIR": str(tmp_path / "state"), "REDIS_URL": redis_url}
        forget()

    yield choose
    forget()
    for huey, _ in made:
        huey.storage.close()  # the connection of this thread


WISH = queues.Wish(app="shop", image="shop:1", region="", max_of_queue=10, max_of_all=20, life_seconds=3600)


def reserved(result: Any, *, wish: queues.Wish = WISH) -> Any:
    """A machine reserved for the group of this run."""
    [group] = [group for group in runs.due_groups() if group.spec_key == runs.get(uuid.UUID(result.id)).spec_key]  # type: ignore[union-attr]
    return queues.reserve_one(group, wish)


def checked_in(result: Any) -> Claimant:
    """A machine for this run that is up, as a claimant."""
    machine = reserved(result)
    return check_in(machine)


def check_in(machine: Any) -> Claimant:
    """The machine says that it is up, with a new boot id."""
    boot_id = secrets.token_hex(16)
    assert machines.check_in(machine.name, boot_id=boot_id, fly_id=secrets.token_hex(7), region="iad", stages={})
    return Claimant(machine.pk, boot_id, machine.backend, machine.queue, machine.spec_key)


def claim(by: Claimant, life_seconds: float = 3600) -> Claim | None:
    return claims.claim(by, lease_seconds=45, life_seconds=life_seconds)


def claimed(result: Any) -> Claim:
    """This run as a machine holds it."""
    held = claim(checked_in(result))
    assert held is not None
    return held


@pytest.fixture(scope="session")
def tables(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """The database of the tests for tests that commit: pytest-django makes it only where a test is marked django_db."""
    with django_db_blocker.unblock():
        there = str(connection.settings_dict["NAME"]).startswith(str(connection.settings_dict["TEST"]["NAME"]))
        made = [] if there else setup_databases(verbosity=0, interactive=False, aliases={"default"})
        yield
        teardown_databases(made, verbosity=0)


@contextlib.contextmanager
def _world(root: Path, request: pytest.FixtureRequest, blocker: Any, idle_seconds: float = 0.0) -> Iterator[World]:
    with blocker.unblock():
        redis_url = "" if connection.vendor == "sqlite" else request.getfixturevalue("redis_url")
        with world(root, redis_url, idle_seconds) as made:
            yield made


@pytest.fixture(scope="module")
def shop(
    tables: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[World]:
    """A world with one dispatcher, for all tests of a module: wake-ups through Redis, or a file where SQLite is."""
    with _world(tmp_path_factory.mktemp("shop"), request, django_db_blocker, idle_seconds=10) as made:
        made.dispatcher()
        yield made


@pytest.fixture
def empty_shop(tables: None, django_db_blocker: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A world of one test alone, in which no dispatcher was started yet."""
    with _world(tmp_path, request, django_db_blocker) as made:
        yield made
