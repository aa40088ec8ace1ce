"""The middleware's decisions: sync and async, with rows, without, and without a database."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.test import AsyncRequestFactory, RequestFactory, override_settings
from django.urls import ResolverMatch

from machinequeue import telemetry
from machinequeue.errors import ConfigurationError
from machinequeue.models import ServerlessMachine
from machinequeue.records import serverless
from machinequeue.serverless import ServerlessMiddleware, middleware, serverless_view
from machinequeue.serverless.views import wanted
from tests.waiting import until

APP = "shop"
PROXY = {"Fly-Client-IP": "192.0.2.7"}

Ask = Callable[..., str]
"""Ask a middleware; the order that it answers with, empty when the view answers."""


def receipt(request: HttpRequest) -> HttpResponse:
    raise AssertionError("the middleware decides before the view")


def other(request: HttpRequest) -> HttpResponse:
    raise AssertionError("the middleware decides before the view")


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    changed = {"APP": APP, "SERVERLESS_VIEWS": [("store:receipt", ["GET"])], "SERVERLESS_TIMEOUT": 2.5}
    with override_settings(MACHINEQUEUE=changed):
        yield


@pytest.fixture
def events() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    heard: list[tuple[str, dict[str, Any]]] = []

    def hear(name: str, fields: dict[str, Any], **_: Any) -> None:
        heard.append((name, fields))

    telemetry.event.connect(hear)
    yield heard
    telemetry.event.disconnect(hear)


class Asker:
    """A middleware of one kind, asked in the way of that kind."""

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async

        async def aget(request: HttpRequest) -> HttpResponse:
            return HttpResponse()

        def get(request: HttpRequest) -> HttpResponse:
            return HttpResponse()

        self.middleware = ServerlessMiddleware(aget if is_async else get)

    def __call__(
        self, view: Callable[..., Any] = receipt, method: str = "GET", path: str = "/r/", **options: Any
    ) -> str:
        headers = options.pop("headers", PROXY)
        factory = (AsyncRequestFactory if self.is_async else RequestFactory)()
        request = factory.generic(method, path, options.pop("body", b""), headers=headers)
        names = {receipt: "receipt", other: "other"}
        match = ResolverMatch(view, (), {}, url_name=names.get(view), app_names=["store"], namespaces=["store"])
        request.resolver_match = match
        decided = self.middleware.process_view(request, view, (), {})
        answer = asyncio.run(decided) if self.is_async else decided
        return "" if answer is None else str(answer["fly-replay"])

    def settle(self) -> None:
        until(self.middleware.fleet.idle, 60)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Iterator[Asker]:
    made = Asker(request.param)
    yield made
    made.settle()


def ready(fly_id: str = "148e21ec") -> ServerlessMachine:
    """A row of the receipts' size whose machine answers."""
    found = wanted(receipt, "store:receipt")
    assert found is not None
    return ServerlessMachine.objects.create(
        app=APP, size_key=found.size_key, size=dict(found.size), name="mq-1", fly_id=fly_id, status="ready", image="i"
    )


def until_replayed(ask: Asker, **options: Any) -> str:
    """The order, once the rows have been read: how long a database takes is nobody's promise."""
    return until(lambda: ask(**options), 60)


@pytest.mark.django_db(transaction=True)
def test_a_ready_machine_gets_the_request(ask: Asker, events: list[tuple[str, dict[str, Any]]]) -> None:
    ready()
    order = until_replayed(ask)
    assert order == "instance=148e21ec;timeout=2500ms;fallback=force_self"
    assert ("serverless.replayed", {"view": "store:receipt", "to": "instance=148e21ec"}) in events


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"headers": {}}, ""),  # not through the proxy: nobody would follow an order
        ({"view": other}, ""),
        ({"method": "POST"}, ""),
        ({"path": "/ht/ready/"}, ""),
        ({"path": "/static/site.css"}, ""),
        ({"headers": {**PROXY, "Fly-Replay-Src": "instance=1"}}, "it was replayed already"),
        ({"headers": {**PROXY, "Fly-Replay-Failed": "instance=1"}}, "its machine did not take it"),
        ({"headers": {**PROXY, "Transfer-Encoding": "chunked"}}, "the length of its body is not known"),
        ({"body": b"x" * 1_000_001}, "its body is too large"),
    ],
)
def test_served_in_place(
    ask: Asker, options: dict[str, Any], reason: str, events: list[tuple[str, dict[str, Any]]]
) -> None:
    ready()
    until_replayed(ask)
    events.clear()
    with override_settings(STATIC_URL="/static/"):
        assert ask(**options) == ""
    assert [fields["reason"] for name, fields in events if name == "serverless.served"] == ([reason] if reason else [])


@pytest.mark.django_db(transaction=True)
def test_on_a_serverless_machine(ask: Asker) -> None:
    row = ready("another")
    ask.middleware.own_size = row.size_key
    assert ask() == ""
    assert ask(method="POST") == ""
    assert ask(view=other) == "elsewhere=true;timeout=2500ms;fallback=force_self"
    assert ask(view=other, headers={**PROXY, "Fly-Replay-Src": "instance=1"}) == ""
    assert ask(view=other, body=b"x" * 1_000_001, method="POST") == ""
    assert ask(view=other, path="/ht/ready/") == ""
    assert ask(view=other, headers={}) == ""
    # A view of another size has a machine of its own.
    ask.middleware.own_size = "another"
    assert until_replayed(ask).startswith("instance=another;")


@pytest.mark.django_db(transaction=True)
def test_its_own_machine_is_not_sent_to_itself(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    ready("148e21ec")
    monkeypatch.setenv("FLY_MACHINE_ID", "148e21ec")
    ask()
    ask.settle()
    assert ask() == ""


@pytest.mark.django_db(transaction=True)
def test_many_requests_wish_once(ask: Asker, events: list[tuple[str, dict[str, Any]]]) -> None:
    askers = [ask, *(Asker(ask.is_async) for _ in range(5))]
    for each in askers * 3:
        assert each() == ""
    for each in askers:
        each.settle()
    row = ServerlessMachine.objects.get()
    assert (row.status, row.app, row.image, row.size["memory_mb"]) == ("wished", APP, "", 1024)
    assert [name for name, _ in events].count("serverless.wished") == 1


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_costs_no_request(
    ask: Asker, events: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(app: str) -> None:
        raise OperationalError("the server closed the connection")

    row = ready()
    until_replayed(ask)
    monkeypatch.setattr(serverless, "known", away)
    # Once what is known is old it is read again, in vain.
    until(lambda: not ask(), 60)
    ask.settle()
    assert ("serverless.unreachable", {"error": "OperationalError: the server closed the connection"}) in events
    assert ask() == ""
    assert ("serverless.served", {"view": "store:receipt", "reason": "the database was not reached"}) in events
    monkeypatch.undo()
    assert until_replayed(ask).startswith(f"instance={row.fly_id};")


@pytest.mark.django_db(transaction=True)
def test_a_reading_that_hangs_is_replaced_by_another(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    door, known, hung = threading.Event(), serverless.known, []

    def first_hangs(app: str) -> Any:
        if not hung:
            hung.append(threading.current_thread())
            door.wait(60)
        return known(app)

    ready()
    monkeypatch.setattr(serverless, "known", first_hangs)
    assert ask() == ""
    until(lambda: hung, 60)
    with monkeypatch.context() as soon:
        soon.setattr("machinequeue.serverless.fleet.HOPELESS_SECONDS", 0.0)
        ask()
    try:
        assert until_replayed(ask).startswith("instance=148e21ec;")
    finally:
        door.set()
        for thread in hung:
            thread.join(60)


@pytest.mark.django_db(transaction=True)
def test_who_asks_keeps_a_machine(ask: Asker) -> None:
    row = ready()
    ServerlessMachine.objects.update(asked_at=row.wished_at.replace(year=2020))
    until_replayed(ask)
    ask.settle()
    row.refresh_from_db()
    assert row.asked_at.year > 2020


def test_the_decorator_goes_through_other_decorators_and_refuses_what_cannot_be() -> None:
    @serverless_view(memory_mb=2048, regions=["cdg"], methods=["post"])
    def marked(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    found = wanted(marked, "")
    assert found is not None
    assert dict(found.size) == {"cpu_kind": "shared", "cpus": 1, "memory_mb": 2048, "regions": ["cdg"]}
    assert found.methods == {"POST"}
    with pytest.raises(ConfigurationError, match=r"'GETS' is no method of HTTP. Did you mean 'GET'"):
        serverless_view(methods=["gets"])
    with pytest.raises(ConfigurationError, match="in steps of 256"):
        serverless_view(memory_mb=300)
    with pytest.raises(ConfigurationError, match="method_decorator"):
        serverless_view(type("Page", (), {}))


def test_a_body_may_be_replayed_up_to_the_limit() -> None:
    request = RequestFactory().post("/", b"x" * middleware.LARGEST_BODY, content_type="text/plain")
    assert middleware._kept(request) == ""
