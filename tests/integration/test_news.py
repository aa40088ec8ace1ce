"""What the database says without being asked: who waits for it is told at once."""

import threading
from typing import Any

import pytest
from django.db import connection, connections

from machinequeue.records import runs
from machinequeue.runner import scribe
from machinequeue.runner.news import News
from machinequeue.runner.output import Output
from machinequeue.runner.scribe import Scribe
from tests.integration.conftest import claimed
from tests.workshop import tasks

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("woken")]


@pytest.fixture(autouse=True)
def _postgresql() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite notifies nobody")


def elsewhere(step: Any) -> None:
    """Do it on a connection of its own."""

    def work() -> None:
        try:
            step()
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_only_what_is_wanted_wakes_who_waits() -> None:
    news = News("machinequeue_cancel", lambda payload: payload == "mine")
    assert not news.wait(0)
    assert news.listen()
    assert not news.listen(), "it listens already"
    say = "SELECT pg_notify('machinequeue_cancel', %s)"
    elsewhere(lambda: connection.cursor().execute(say, ["another's"]))
    assert not news.wait(0.1)
    elsewhere(lambda: connection.cursor().execute(say, ["mine"]))
    assert news.wait(60)
    assert not news.wait(0), "it is told once"


def test_what_comes_with_the_answer_to_a_query_is_heard_too() -> None:
    news = News("machinequeue_cancel", lambda payload: payload == "mine")
    news.listen()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify('machinequeue_cancel', 'mine')")
    assert news.wait(60)


def test_a_broken_connection_ends_the_wait_and_is_not_waited_on_again() -> None:
    news = News("machinequeue_cancel", lambda payload: True)
    news.listen()
    ours = connection.connection.info.backend_pid
    elsewhere(lambda: connection.cursor().execute("SELECT pg_terminate_backend(%s)", [ours]))
    assert not news.wait(10)
    assert not news.listening
    connections.close_all()
    assert news.listen()


@pytest.fixture
def scribe_at_rest(monkeypatch: pytest.MonkeyPatch) -> Scribe:
    """A scribe whose steps the test takes in its own thread, and who neither looks nor heartbeats by the clock."""
    monkeypatch.setattr(scribe, "CANCEL_SECONDS", 1000.0)
    monkeypatch.setattr(scribe, "LISTEN_AFTER", 0.0)
    monkeypatch.setattr(Scribe, "_live", lambda self: None)
    return Scribe(lease_seconds=1000.0, heartbeat_seconds=1000.0)


def test_a_cancel_wakes_the_scribe_without_its_looking(scribe_at_rest: Scribe) -> None:
    held = claimed(tasks.add.enqueue(1))
    watched = scribe_at_rest.watch(held, Output(1000))
    scribe_at_rest._write(watched)
    assert scribe_at_rest._cancels.listening
    assert not watched.cancel
    elsewhere(lambda: runs.cancel(held.run_id))
    assert scribe_at_rest._cancels.wait(60)


def test_a_cancel_from_before_the_scribe_listened_is_found_when_it_begins_to(scribe_at_rest: Scribe) -> None:
    held = claimed(tasks.add.enqueue(1))
    watched = scribe_at_rest.watch(held, Output(1000))
    runs.cancel(held.run_id)
    scribe_at_rest._write(watched)
    assert watched.cancel
