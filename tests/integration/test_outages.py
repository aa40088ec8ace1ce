"""The database is away at the worst moments: when an outcome is to be written, and when its commit is answered."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.db import connection

from machinequeue.models import Machine
from tests.waiting import until
from tests.wire import Wire
from tests.workshop import tasks
from tests.world import World, database_url, world


@dataclass
class Place:
    """A world whose machines reach the database over a wire; dispatchers have a way of their own."""

    world: World
    wire: Wire

    def log_of(self, result: Any) -> str:
        result.refresh()
        return self.world.emulator.output(result.worker_ids[0])


@pytest.fixture(scope="module")
def place(
    tables: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> Iterator[Place]:
    with django_db_blocker.unblock():
        if connection.vendor == "sqlite":
            pytest.skip("a file is not away")
        direct = database_url()
        parts = urlsplit(direct)
        with Wire(str(parts.hostname), parts.port or 5432) as wire:
            away = parts.netloc.rpartition("@")[0] + f"@127.0.0.1:{wire.port}"
            over = urlunsplit(parts._replace(netloc=away))
            with world(tmp_path_factory.mktemp("place"), redis_url, url=over) as made:
                made.dispatcher(DATABASE_URL=direct)
                yield Place(made, wire)


def started(gate: Path) -> list[Path]:
    return list(gate.parent.glob(f"{gate.name}.*.started"))


def test_an_outcome_that_finds_the_database_away_is_recorded_once_when_it_is_back(place: Place, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = tasks.wait_for.enqueue(str(gate))
    until(lambda: started(gate), 60, place.world.said)
    place.wire.cut()
    try:
        until(lambda: "A heartbeat could not be written" in place.log_of(result), 60, place.world.said)
        gate.touch()
        until(lambda: place.log_of(result).count("database.unreachable") >= 3, 60, place.world.said)
    finally:
        place.wire.mend()
    place.world.finish(result)
    assert (result.return_value, result.attempts) == ("the gate is open", 1)
    until(lambda: "run.succeeded" in place.log_of(result), 60)
    assert place.log_of(result).count("run.succeeded") == 1
    assert "Traceback" not in place.log_of(result)


@pytest.mark.parametrize(
    ("name", "words", "status", "event"),
    [
        ("wait_for", b"'SUCCESSFUL'", "SUCCESSFUL", "run.succeeded"),
        ("wait_and_fail", b"COMMIT", "FAILED", "run.failed"),
    ],
)
def test_an_outcome_whose_answer_was_lost_is_known_to_be_recorded(
    place: Place, tmp_path: Path, name: str, words: bytes, status: str, event: str
) -> None:
    gate = tmp_path / "gate"
    result = getattr(tasks, name).enqueue(str(gate))
    until(lambda: started(gate), 60, place.world.said)
    place.wire.swallow_answer_to(words)
    gate.touch()
    assert place.wire.swallowed.wait(60), "the outcome was never written"
    place.world.finish(result)
    assert (result.run_status, result.attempts) == (status, 1)
    until(lambda: event in place.log_of(result), 60, place.world.said)
    assert place.log_of(result).count("database.unreachable") == 1
    assert place.log_of(result).count(event) == 1
    assert "claim.lost" not in place.log_of(result)
    until(lambda: Machine.objects.get(fly_id=result.worker_ids[0]).status == "gone", 60, place.world.said)
