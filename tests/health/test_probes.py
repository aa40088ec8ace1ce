"""/ht/live/ and /ht/ready/: who is asked, and what Fly's way of asking must not be refused for."""

import asyncio
import threading
from typing import Any

import pytest
from django.db import OperationalError, connections
from django.http import HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from machinequeue.contrib.health import probes
from machinequeue.contrib.health.middleware import HealthCheckMiddleware
from machinequeue.health import asking, failure, ok, services
from tests.waiting import until

MIDDLEWARE = "machinequeue.contrib.health.middleware.HealthCheckMiddleware"


@pytest.fixture
def strict(settings: Any) -> None:
    """A site as on Fly: its own name only, TLS only."""
    settings.ALLOWED_HOSTS = ["shop.fly.dev"]
    settings.SECURE_SSL_REDIRECT = True
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is executed on new connections."""
    seen: list[str] = []
    make = services._connection

    def watched(alias: str) -> Any:
        connection = make(alias)
        connection.execute_wrappers.append(lambda go, sql, *rest: (seen.append(sql), go(sql, *rest))[1])
        return connection

    monkeypatch.setattr(services, "_connection", watched)
    return seen


def test_live_asks_nothing() -> None:
    # Without the mark django_db any question to the database fails the test.
    answer = Client().get("/ht/live/")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert "no-store" in answer["Cache-Control"]
    assert answer["Content-Length"] == str(len(answer.content))


@pytest.mark.django_db
def test_ready_asks_once(statements: list[str]) -> None:
    with CaptureQueriesContext(connections["default"]) as own:
        answer = Client().get("/ht/ready/")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert statements == ["SELECT 1"]
    assert len(own) == 0


@pytest.mark.django_db
@pytest.mark.parametrize("address", ["/ht/live/", "/ht/ready/"])
@pytest.mark.parametrize("host", ["health.check", "172.19.0.3:8000", "[fdaa::3]:8000", "bad host/"])
def test_fly_asks_by_address_and_without_tls(strict: None, address: str, host: str) -> None:
    assert Client().get(address, headers={"host": host}).status_code == 200
    assert Client().head(address, headers={"host": host}).content == b""


@pytest.mark.django_db
def test_without_the_middleware_the_headers_of_fly_toml_do_it(strict: None, settings: Any) -> None:
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != MIDDLEWARE]
    for address in ("/ht/live/", "/ht/ready/"):
        assert Client().get(address, headers={"host": "shop.fly.dev"}).status_code == 301
        plain = {"host": "172.19.0.3:8000", "x-forwarded-proto": "https"}
        assert Client().get(address, headers=plain).status_code == 400
        settings.ALLOWED_HOSTS = ["shop.fly.dev", "health.check"]
        asked = {"host": "health.check", "x-forwarded-proto": "https"}
        assert Client().get(address, headers=asked).status_code == 200
        settings.ALLOWED_HOSTS = ["shop.fly.dev"]


def test_every_other_address_stays_guarded(strict: None) -> None:
    client = Client()
    for address in ("/ht/", "/ht/metrics", "/admin/", "/ht/live/more/", "/live/", "/ready/"):
        assert client.get(address, headers={"host": "shop.fly.dev"}).status_code == 301, address
        refused = {"host": "health.check", "x-forwarded-proto": "https"}
        assert client.get(address, headers=refused).status_code in (400, 404), address
    assert client.post("/ht/live/", headers={"host": "shop.fly.dev"}).status_code == 301


def test_only_reading() -> None:
    assert Client().post("/ht/live/").status_code == 405
    assert Client().post("/ht/ready/").status_code == 405


@pytest.mark.django_db
def test_asked_by_asgi(strict: None) -> None:
    async def ask() -> list[int]:
        client = AsyncClient(headers={"host": "health.check"})
        return [(await client.get(address)).status_code for address in ("/ht/live/", "/ht/ready/")]

    assert asyncio.run(ask()) == [200, 200]


def test_the_middleware_passes_on_what_is_not_its_own() -> None:
    passed = HttpResponse("passed")
    assert HealthCheckMiddleware(lambda request: passed)(RequestFactory().get("/elsewhere/")) is passed

    async def next_one(request: Any) -> HttpResponse:
        return passed

    async def ask() -> Any:
        return await HealthCheckMiddleware(next_one)(RequestFactory().get("/ht/alive/"))  # type: ignore[misc]

    assert asyncio.run(ask()) is passed


def test_a_site_that_mounts_it_elsewhere(settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.health.elsewhere"
    assert Client().get("/status/live/").json() == {"status": "ok"}
    assert Client().get("/ht/live/").status_code == 404


def test_a_site_that_mounts_nothing_has_the_two_all_the_same(settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.health.nothing"
    assert Client().get("/ht/live/").json() == {"status": "ok"}
    assert Client().get("/ht/").status_code == 404


def test_a_database_that_is_away_is_said_without_its_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(alias: str) -> Any:
        raise OperationalError('connection to server at "10.0.0.7", user "shop" failed')

    monkeypatch.setattr(services, "_connection", refused)
    answer = Client().get("/ht/ready/")
    assert (answer.status_code, answer.json()["sentence"]) == (503, "The database does not answer.")
    assert "10.0.0.7" not in answer.content.decode()
    assert "10.0.0.7" in caplog.text
    assert not [record for record in caplog.records if record.name == "django.request"]  # which mails ADMINS


def test_a_database_that_hangs_takes_no_longer_than_told(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()
    asked = []

    def hangs() -> Any:
        asked.append(1)
        opened.wait(60)
        return ok("")

    monkeypatch.setattr(services, "database", hangs)
    monkeypatch.setattr(probes, "READY_SECONDS", 0.2)
    for _ in range(3):
        answer = Client().get("/ht/ready/")
        assert (answer.status_code, answer.json()["status"]) == (503, "failure")
    assert asked == [1]  # a thread for each probe would be the end of the process
    opened.set()
    until(lambda: not asking._hanging)
    monkeypatch.setattr(services, "database", lambda: failure("away"))
    assert Client().get("/ht/ready/").json()["sentence"] == "The database does not answer."
