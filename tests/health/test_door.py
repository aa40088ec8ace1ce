"""Who may read /ht/ and /ht/metrics, and that the token is seen by nobody."""

import logging
import sys
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.test import Client, RequestFactory
from django.views.debug import ExceptionReporter

from machinequeue import conf
from machinequeue.contrib.health import checks, door
from machinequeue.contrib.health.views import HealthView

pytestmark = pytest.mark.django_db(transaction=True)

ADDRESSES = ("/ht/", "/ht/metrics")


@pytest.mark.parametrize("address", ADDRESSES)
def test_strangers_are_refused(address: str, token: str) -> None:
    client = Client()
    assert client.get(address).status_code == 403
    assert client.get(f"{address}?token=wrong").status_code == 403
    assert client.get(f"{address}?token=").status_code == 403
    for header in ("Bearer wrong", "Bearer ", "Bearer", token, f"Basic {token}", "Bearer tökén"):
        assert client.get(address, headers={"authorization": header}).status_code == 403, header
    assert "HEALTH_TOKEN" in client.get(address).content.decode()


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_token_opens(address: str, token: str) -> None:
    client = Client()
    for header in (f"Bearer {token}", f"bearer {token}", f"BEARER   {token} "):
        assert client.get(address, headers={"authorization": header}).status_code in (200, 503), header
    assert client.get(address, {"token": token}).status_code in (200, 503)
    assert client.head(address, headers={"authorization": f"Bearer {token}"}).status_code in (200, 503)


@pytest.mark.parametrize("address", ADDRESSES)
def test_without_a_token_only_staff(address: str) -> None:
    assert conf.settings().health_token == ""
    client = Client()
    assert client.get(f"{address}?token=", headers={"authorization": "Bearer "}).status_code == 403
    client.force_login(User.objects.create_user("customer"))
    assert client.get(address).status_code == 403
    client.force_login(User.objects.create_user("staff", is_staff=True))
    assert client.get(address).status_code in (200, 503)


def test_a_session_that_cannot_be_read_is_no_staff_and_the_token_still_opens(token: str) -> None:
    class Away:
        @property
        def is_active(self) -> bool:
            raise OperationalError("the database is away")

    request = RequestFactory().get("/ht/")
    request.user = Away()  # type: ignore[assignment]
    assert not door.may_read(request)
    request = RequestFactory().get("/ht/", headers={"authorization": f"Bearer {token}"})
    request.user = Away()  # type: ignore[assignment]
    assert door.may_read(request)


def test_the_token_is_in_no_log_and_no_report_of_an_error(
    token: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    reports: list[str] = []

    def broken(self: Any) -> None:
        raise RuntimeError("the page is broken")

    def reported(self: Any, request: Any) -> Any:
        try:
            return HealthView.get(self, request)
        except RuntimeError:
            reporter = ExceptionReporter(request, *sys.exc_info())
            reports.extend((reporter.get_traceback_text(), reporter.get_traceback_html()))
            raise

    class Broken(HealthView):
        get = reported  # type: ignore[assignment]

    monkeypatch.setattr("machinequeue.contrib.health.views.look", broken)
    # What Django mails to ADMINS and shows with DEBUG; frames of the client are not the site's.
    sent = (("?token=" + token.replace(" ", "%20"), {}), ("", {"authorization": f"Bearer {token}"}))
    for query, headers in sent:
        request = RequestFactory().get(f"/ht/{query}", headers=headers)
        with pytest.raises(RuntimeError):
            Broken.as_view()(request)
    assert len(reports) == 4
    for text in (*reports, caplog.text, repr(conf.settings())):
        for spelled in (token, token.replace(" ", "%20"), token.replace(" ", "+")):
            assert spelled not in text
    client = Client()
    client.get("/ht/", {"token": "a wrong one"})
    assert "a wrong one" not in caplog.text


def test_a_check_that_answers_badly_says_nothing_of_the_request(token: str) -> None:
    client = Client()
    answer = client.get("/ht/", {"token": token})
    assert token not in answer.content.decode()
    page = client.get("/ht/", {"token": token, "format": "html"})
    assert token not in page.content.decode()
    assert page["Referrer-Policy"] == "no-referrer"
    assert "no-store" in page["Cache-Control"]
    assert checks.DEFAULT
