"""What the system checks say of serverless views."""

from typing import Any

import pytest
from django.test import override_settings

from machinequeue import checks
from machinequeue.serverless.__main__ import address, words

MIDDLEWARE = "machinequeue.serverless.ServerlessMiddleware"


@pytest.fixture(autouse=True)
def _site() -> Any:
    with override_settings(ROOT_URLCONF="tests.serverless.site.urls", MIDDLEWARE=[MIDDLEWARE]):
        yield


def said(*views: Any, **more: Any) -> list[str]:
    with override_settings(MACHINEQUEUE={"SERVERLESS_VIEWS": list(views), **more}):
        return [f"{message.id}: {message.msg}" for message in checks.check_serverless()]


def test_views_that_are_there_pass() -> None:
    assert said(("site:listed", ["GET"]), ("site:plain", ("get", "HEAD"))) == []


def test_an_unknown_view_is_named_with_the_one_that_was_meant() -> None:
    [problem] = said(("site:lsted", ["GET"]))
    assert problem.startswith("machinequeue.E007")
    assert "'site:lsted': no view has this name. Did you mean 'site:listed'?" in problem


def test_a_method_that_is_none() -> None:
    [problem] = said(("site:listed", ["GRAB"]))
    assert "'GRAB' is no method of HTTP." in problem
    [problem] = said(("site:listed", []))
    assert "names no method" in problem


def test_a_size_that_does_not_go_with_the_settings() -> None:
    problems = said(SERVERLESS_CPU_KIND="performance", SERVERLESS_MEMORY_MB=2048)
    assert any("@serverless_view of 'site:posted': memory_mb=512" in problem for problem in problems)


def test_without_the_middleware_nothing_would_be_sent() -> None:
    with override_settings(MIDDLEWARE=[]):
        [problem] = said()
    assert problem.startswith("machinequeue.W006")
    with override_settings(MIDDLEWARE=[], ROOT_URLCONF="tests.workshop.urls"):
        assert said() == []


@pytest.mark.parametrize("views", ["site:listed", [("site:listed", "GET")], [("site:listed",)]])
def test_a_malformed_list_is_the_settings_check_s(views: Any) -> None:
    with override_settings(MACHINEQUEUE={"SERVERLESS_VIEWS": views}):
        assert checks.check_serverless() == []
        assert [message.id for message in checks.check_settings()] == ["machinequeue.E001"]


def test_a_server_listens_where_requests_arrive() -> None:
    assert address({"FLY_PRIVATE_IP": "fdaa:0:1::2"}) == ("::", "8080")
    assert address({"FLY_PRIVATE_IP": "127.0.3.4", "MACHINEQUEUE_SERVERLESS_PORT": "9000"}) == ("127.0.3.4", "9000")
    assert words(["a", "{bind}", "{x}"], "::", "80") == ["a", "[::]:80", "{x}"]
    assert words(["--host={host}", "{port}", "{bind}"], "127.0.3.4", "80") == ["--host=127.0.3.4", "80", "127.0.3.4:80"]
