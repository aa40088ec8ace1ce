"""The view: JSON or a page, checks of the site's own, django-health-check's, and ours in its view."""

import asyncio
import json
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError
from django.test import AsyncClient, Client, RequestFactory
from django.utils import translation
from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable, ServiceWarning
from health_check.views import HealthCheckView

from machinequeue.contrib.health import checks, report
from machinequeue.contrib.health.views import HealthView
from machinequeue.health import asking, services
from machinequeue.records import dispatchers
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _a_dispatcher_is_there(db: Any) -> None:
    dispatchers.seen("web-1-41-a1b2c3")


@dataclass
class Paper(HealthCheck):
    """A check as a site writes it, for django-health-check."""

    sheets: int = 100

    def run(self) -> None:  # type: ignore[override]
        if self.sheets == 0:
            raise ServiceUnavailable("no paper, 100 % gone")
        if self.sheets < 10:
            raise ServiceWarning(f"{self.sheets} sheets left")
        if self.sheets > 1000:
            raise RuntimeError("secret inside")


@dataclass
class Ink(HealthCheck):
    """The same, async."""

    async def run(self) -> None:
        await asyncio.sleep(0)
        raise ServiceWarning("low")


def ask(*listed: Any, **extra: Any) -> tuple[int, dict[str, Any], dict[str, dict[str, Any]]]:
    """What a view with these checks answers to the token."""
    request = RequestFactory().get("/ht/", headers={"authorization": "Bearer a token of the tests"}, **extra)
    answer: Any = HealthView.as_view(checks=listed)(request)
    whole = json.loads(answer.content)
    return answer.status_code, whole, {check["name"]: check for check in whole["checks"]}


@pytest.mark.usefixtures("token")
def test_checks_of_the_sites_own() -> None:
    status, whole, found = ask(Paper, "tests.health.test_view.Ink", (checks.Dispatcher, {"silent": timedelta(0)}))
    assert (status, whole["status"]) == (503, "failure")
    assert found["Paper"] == {
        "name": "Paper",
        "status": "ok",
        "sentence": "It works.",
        "remedy": "",
        "seconds": found["Paper"]["seconds"],
        "figures": {},
    }
    assert (found["Ink"]["status"], found["Ink"]["sentence"]) == ("warning", "low")
    assert found["dispatcher"]["status"] == "failure"


@pytest.mark.usefixtures("token")
def test_two_checks_of_one_class_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    listed = [(Paper, {"sheets": sheets}) for sheets in (50, 0, 5, 2000)]
    status, whole, found = ask(*listed)
    assert (status, whole["status"]) == (503, "failure")
    assert [check["status"] for check in whole["checks"]] == ["ok", "failure", "warning", "failure"]
    assert found["Paper(sheets=0)"]["sentence"] == "no paper, 100 % gone"
    assert found["Paper(sheets=5)"]["sentence"] == "5 sheets left"
    broken = found["Paper(sheets=2000)"]
    assert broken["sentence"] == "The check itself failed: RuntimeError. The log has more."
    assert "secret inside" in caplog.text


@pytest.mark.usefixtures("token")
def test_one_slow_check_is_reported_and_the_others_are_fine() -> None:
    opened = threading.Event()

    @dataclass
    class Slow(HealthCheck):
        timeout = timedelta(seconds=0.2)

        def run(self) -> None:  # type: ignore[override]
            opened.wait(60)

    status, _, found = ask(Slow, Paper, *checks.DEFAULT)
    assert status == 503
    assert found["Slow"]["status"] == "failure"
    assert found["Slow"]["sentence"].startswith("No answer within ")
    assert {check["status"] for name, check in found.items() if name != "Slow"} == {"ok"}
    opened.set()
    until(lambda: not asking._hanging)
    assert ask(Slow)[0] == 200


@pytest.mark.usefixtures("token")
def test_with_the_database_away_nobody_else_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(alias: str) -> Any:
        raise OperationalError("connection refused")

    monkeypatch.setattr(services, "_connection", refused)
    status, whole, found = ask(*checks.DEFAULT, Paper)
    assert (status, whole["status"]) == (503, "failure")
    assert found["database"]["sentence"] == "The database “default” does not answer."
    assert found["wakeups"]["status"] == found["Paper"]["status"] == "ok"
    rest = set(found) - {"database", "wakeups", "Paper"}
    sentence = "Not known while the database does not answer."
    assert {(found[name]["status"], found[name]["sentence"]) for name in rest} == {("warning", sentence)}
    assert [check["name"] for check in whole["checks"]][:2] == ["database", "wakeups"]


def test_json_for_programs_and_a_page_for_people(token: str) -> None:
    client = Client(headers={"authorization": f"Bearer {token}"})
    for accept, query, wanted in (
        ("*/*", "", "application/json"),
        ("application/json", "", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "", "text/html; charset=utf-8"),
        ("text/html", "?format=json", "application/json"),
        ("*/*", "?format=html", "text/html; charset=utf-8"),
        ("*/*", "?format=text", "text/plain; charset=utf-8"),
        ("text/plain", "", "text/plain; charset=utf-8"),
        ("application/json, text/plain, */*", "", "application/json"),
        ("image/png", "?format=xml", "application/json"),
    ):
        answer = client.get(f"/ht/{query}", headers={"accept": accept})
        assert answer["Content-Type"] == wanted, (accept, query)
        assert {"Accept", "Authorization", "Cookie"} <= {name.strip() for name in answer["Vary"].split(",")}


def test_the_page_speaks_german_and_json_does_not(token: str) -> None:
    dispatchers.leave("web-1-41-a1b2c3")
    client = Client(headers={"authorization": f"Bearer {token}", "accept-language": "de"})
    page = client.get("/ht/?format=html")
    assert page.status_code == 503
    text = page.content.decode()
    for words in ('<html lang="de"', "Etwas ist kaputt", "Kein Dispatcher läuft", "Weckrufe", "Fehler", "Datenbank"):
        assert words in text, words
    assert "No dispatcher is running" in client.get("/ht/").content.decode()
    refused = Client(headers={"accept": "text/html", "accept-language": "de"}).get("/ht/")
    assert refused.status_code == 403
    assert "Nur für Mitarbeiter" in refused.content.decode()
    assert "/admin/login/?next=%2Fht%2F" in refused.content.decode()
    assert translation.get_language() in ("en", "de")


def test_text_for_a_terminal(token: str) -> None:
    dispatchers.leave("web-1-41-a1b2c3")
    client = Client(headers={"authorization": f"Bearer {token}", "accept-language": "de"})
    answer = client.get("/ht/?format=text")
    lines = answer.content.decode().splitlines()
    assert (answer.status_code, lines[0]) == (503, "failure")
    assert lines[1] == "ok       database    The database “default” answers."
    assert lines[3] == "failure  dispatcher  No dispatcher is running, so no machine is launched."
    assert lines[4].startswith(" " * 21 + "Start one: manage.py mq_dispatcher.")


def test_asked_by_asgi(token: str) -> None:
    async def ask_it() -> list[int]:
        headers = {"authorization": f"Bearer {token}"}
        addresses = ("/ht/", "/ht/?format=html", "/ht/metrics")
        return [(await AsyncClient().get(address, headers=headers)).status_code for address in addresses]

    assert asyncio.run(ask_it()) == [200, 200, 200]


def test_our_checks_in_the_view_of_django_health_check() -> None:
    dispatchers.leave("web-1-41-a1b2c3")
    view: Any = HealthCheckView.as_view(checks=[checks.Dispatcher, checks.Circuits])

    async def ask_it() -> Any:
        return await view(RequestFactory().get("/", {"format": "json"}))

    answer = asyncio.run(ask_it())
    found = json.loads(answer.content)
    assert answer.status_code == 500
    assert found["Circuits()"] == "OK"
    [broken] = [text for name, text in found.items() if name.startswith("Dispatcher(")]
    assert broken.startswith("Unavailable: No dispatcher is running, so no machine is launched. Start one:")


def test_every_check_of_ours_says_its_name_once() -> None:
    slugs = [check.slug for check in checks.DEFAULT]
    assert len(set(slugs)) == len(slugs)
    assert all(check.title and check.__doc__ for check in checks.DEFAULT)
    named = report._named([check() for check in checks.DEFAULT])
    assert list(named) == slugs


def test_the_system_checks_are_content(settings: Any) -> None:
    call_command("check", "machinequeue_health")
