"""A client that sends the token, and rows as dispatchers, machines and backups leave them."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from machinequeue.contrib.health import checks, probes, views
from machinequeue.health import asking, services
from tests.waiting import until

TOKEN = "a token of the tests"


@pytest.fixture(autouse=True)
def _nothing_hangs() -> Iterator[None]:
    """No question of this test is left unanswered for the next one."""
    yield
    until(lambda: not asking._hanging)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is asked may be slow here; a test of what hangs says itself how long it waits."""
    monkeypatch.setattr(checks.MachineQueueCheck, "timeout", timedelta(seconds=60))
    monkeypatch.setattr(probes, "READY_SECONDS", 60.0)
    monkeypatch.setattr(views, "METRICS_SECONDS", 60.0)
    monkeypatch.setattr(services, "CONNECT_SECONDS", 60)


@pytest.fixture
def token(settings: Any) -> str:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "HEALTH_TOKEN": TOKEN, "APP": "shop"}
    return TOKEN


@pytest.fixture
def report(token: str) -> Callable[[], tuple[int, dict[str, Any], dict[str, dict[str, Any]]]]:
    """Ask /ht/: the HTTP status, the whole, and the checks by name. Its threads have connections of their own."""

    def ask() -> tuple[int, dict[str, Any], dict[str, dict[str, Any]]]:
        answer = Client().get("/ht/", headers={"authorization": f"Bearer {token}"})
        whole = answer.json()
        return answer.status_code, whole, {check["name"]: check for check in whole["checks"]}

    return ask
