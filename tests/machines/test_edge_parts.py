"""The edge's decisions: orders, headers, candidates."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from machinequeue.machines.proxy import headers
from machinequeue.machines.proxy.candidates import (
    Candidate,
    Choice,
    Service,
    Wish,
    candidates,
    choose,
    is_in,
    to_stop,
)
from machinequeue.machines.proxy.door import app_of
from machinequeue.machines.proxy.headers import Arrival
from machinequeue.machines.proxy.replay import BadReplay, Replay, Transform, duration, failure, source
from machinequeue.machines.schema import Machine

ARRIVAL = Arrival("203.0.113.9", "127.0.0.1", "8080", "iad", "01REQUEST-iad")


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("instance=00bb33ff", Replay(instance="00bb33ff")),
        ("  instance = 00bb33ff ; ; state = s ", Replay(instance="00bb33ff", state="s")),
        ("prefer_instance=00bb33ff;app=other", Replay(prefer_instance="00bb33ff", app="other")),
        ('region="iad,ord, us ,any"', Replay(regions=("iad", "ord", "us", "any"))),
        ('region="sjc,any";app=target-app', Replay(regions=("sjc", "any"), app="target-app")),
        ("region=SJC", Replay(regions=("sjc",))),
        ("elsewhere=true", Replay(elsewhere=True)),
        ("elsewhere=false", Replay()),
        ("Elsewhere=TRUE", Replay(elsewhere=True)),
        ("app=a;state=k=v&x=1", Replay(app="a", state="k=v&x=1")),
        ('app=a;state="one;two"', Replay(app="a", state="one;two")),
        ("app=a;timeout=800ms;fallback=prefer_self", Replay(app="a", timeout=0.8, fallback="prefer_self")),
        ("app=a;timeout=1m30s;fallback=force_self", Replay(app="a", timeout=90.0, fallback="force_self")),
        ("app=a;colour=red", Replay(app="a")),
    ],
)
def test_an_order_in_a_header(text: str, order: Replay) -> None:
    assert Replay.from_header(text) == order


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("region=iad,ord", r'must be quoted: region="iad,ord"'),
        ("app=a;fallback=yes", "fallback is force_self or prefer_self, not 'yes'"),
        ("app=a;timeout=soon", "timeout is a duration such as 10s or 800ms, not 'soon'"),
    ],
)
def test_an_order_that_fly_would_not_follow_is_explained(text: str, said: str) -> None:
    with pytest.raises(BadReplay, match=said):
        Replay.from_header(text)


def test_an_order_in_json() -> None:
    body = {
        "app": "target-app",
        "region": "iad,us",
        "elsewhere": True,
        "timeout": "10s",
        "fallback": "force_self",
        "cache": {"prefix": "/some/*", "ttl": 60},
        "transform": {
            "path": "/new/path?param=value",
            "delete_headers": ["X-Unwanted", "cookie"],
            "set_headers": [{"name": "Authorization", "value": "Bearer token123"}],
        },
    }
    assert Replay.from_json(json.dumps(body).encode()) == Replay(
        app="target-app",
        regions=("iad", "us"),
        elsewhere=True,
        timeout=10.0,
        fallback="force_self",
        transform=Transform("/new/path?param=value", ("x-unwanted", "cookie"), (("authorization", "Bearer token123"),)),
    )


@pytest.mark.parametrize(
    "body",
    [
        "nonsense",
        "[]",
        '{"app": 1}',
        '{"transform": []}',
        '{"transform": {"path": "no-slash"}}',
        '{"transform": {"path": "/two\\r\\nlines"}}',
        '{"transform": {"delete_headers": "cookie"}}',
        '{"transform": {"set_headers": [{"name": "a b", "value": "c"}]}}',
        '{"transform": {"set_headers": [{"name": "a", "value": "c\\r\\nd: e"}]}}',
        '{"transform": {"set_headers": [{"name": "a", "value": "\\u2013"}]}}',
    ],
)
def test_an_order_in_bad_json_is_refused(body: str) -> None:
    with pytest.raises(BadReplay):
        Replay.from_json(body.encode())


def test_durations_are_seconds() -> None:
    assert [duration(text) for text in ("10s", "800ms", "1m30s", "0.5s")] == [10, 0.8, 90, 0.5]


def test_a_replayed_request_says_where_it_comes_from() -> None:
    assert source("00bb33ff", "iad", 1234567, "a=b") == "instance=00bb33ff;region=iad;t=1234567;state=a=b"
    assert source("00bb33ff", "iad", 1234567, "") == "instance=00bb33ff;region=iad;t=1234567"


def test_a_request_that_fell_back_says_why() -> None:
    order = Replay(instance="00bb33ff", regions=("iad",))
    told = failure(order, app="target-app", replay_source="11aa44ee", reason="timeout", elapsed_ms=10000)
    expected = "instance=00bb33ff;app=target-app;region=iad;replay_source=11aa44ee;reason=timeout;elapsed_ms=10000"
    assert told == expected


# -- headers


def seen(given: dict[str, str], upgrade: bool = False) -> dict[str, str]:
    pairs = [(name.encode(), value.encode()) for name, value in given.items()]
    return {name.decode(): value.decode() for name, value in headers.for_machine(pairs, ARRIVAL, upgrade)}


def test_a_client_cannot_speak_for_the_edge() -> None:
    forged = {
        "fly-client-ip": "1.2.3.4",
        "fly-replay-src": "instance=x",
        "fly-replay-failed": "reason=timeout",
        "fly-region": "moon",
        "fly-request-id": "mine",
        "fly-preferred-instance-unavailable": "x",
        "fly-replay-cache-status": "hit",
        "fly-anything-new": "x",
        "x-forwarded-proto": "https",
        "x-forwarded-ssl": "on",
        "fly-prefer-region": "cdg",
        "cookie": "a=b",
    }
    assert seen(forged) == {
        "cookie": "a=b",
        "fly-prefer-region": "cdg",
        "via": "1.1 fly.io",
        "x-forwarded-for": "203.0.113.9, 127.0.0.1",
        "x-forwarded-proto": "http",
        "x-forwarded-port": "8080",
        "x-forwarded-ssl": "off",
        "fly-client-ip": "203.0.113.9",
        "fly-forwarded-port": "8080",
        "fly-region": "iad",
        "fly-request-id": "01REQUEST-iad",
    }


def test_headers_of_one_connection_stay_there() -> None:
    given = {"connection": "keep-alive, X-Mine", "keep-alive": "5", "x-mine": "1", "te": "trailers", "expect": "100"}
    assert not {"connection", "keep-alive", "x-mine", "te", "expect"} & set(seen(given))
    assert seen({"transfer-encoding": "gzip, chunked"})["transfer-encoding"] == "chunked"
    upgraded = seen({"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-key": "k"}, upgrade=True)
    assert (upgraded["connection"], upgraded["upgrade"], upgraded["sec-websocket-key"]) == ("Upgrade", "websocket", "k")


def test_the_way_of_a_request_grows() -> None:
    given = seen({"x-forwarded-for": "198.51.100.1", "via": "1.1 cdn", "x-forwarded-port": "443"})
    assert given["x-forwarded-for"] == "198.51.100.1, 203.0.113.9, 127.0.0.1"
    assert given["via"] == "1.1 cdn, 1.1 fly.io"
    assert given["x-forwarded-port"] == "443"


def test_orders_never_reach_a_client() -> None:
    answered = [
        (b"fly-replay-cache", b"/x"),
        (b"fly-replay", b"x"),
        (b"server", b"gunicorn"),
        (b"server-timing", b"db"),
    ]
    passed = dict(headers.for_client([*answered, (b"set-cookie", b"a"), (b"connection", b"close")], "id"))
    assert set(passed) == {b"server-timing", b"set-cookie", b"via", b"server", b"fly-request-id"}
    assert passed[b"server"] == b"Fly/local"


def test_a_transformed_request_keeps_its_frame_and_the_edges_word() -> None:
    given = [(b"content-length", b"3"), (b"cookie", b"a"), (b"fly-client-ip", b"1"), (b"x-old", b"1")]
    wanted = Transform(
        delete_headers=("cookie", "content-length", "fly-client-ip"),
        set_headers=(("x-old", "2"), ("fly-client-ip", "9"), ("transfer-encoding", "chunked"), ("x-new", "3")),
    )
    assert headers.transformed(given, wanted) == [
        (b"content-length", b"3"),
        (b"fly-client-ip", b"1"),
        (b"x-old", b"2"),
        (b"x-new", b"3"),
    ]


@pytest.mark.parametrize(
    ("host", "app"),
    [
        ("shop.localhost:8080", "shop"),
        ("Shop.LocalHost", "shop"),
        ("admin.fly.dev", "admin"),
        ("iad.admin.internal", "admin"),
        ("admin.flycast", "admin"),
        ("127.0.0.1:8080", "default"),
        ("localhost:8080", "default"),
        ("www.example.com", "default"),
        ("-.localhost", "default"),
        ("", "default"),
    ],
)
def test_the_host_names_the_app(host: str, app: str) -> None:
    assert app_of(host, "default") == app


# -- candidates


def service(**fields: Any) -> dict[str, Any]:
    usual = {"internal_port": 8000, "protocol": "tcp", "ports": [{"port": 443, "handlers": ["tls", "http"]}]}
    return {**usual, **fields}


def machine(**fields: Any) -> Machine:
    usual = {"id": "m1", "name": "n", "state": "started", "region": "iad", "private_ip": "127.1.0.2"}
    return Machine.parse({"config": {"services": [service()]}, **usual, **fields})


def test_a_service_is_read_in_all_its_spellings() -> None:
    limits = {"type": "requests", "soft_limit": 5, "hard_limit": 9}
    full = service(autostart=True, autostop="suspend", min_machines_running=2, concurrency=limits)
    assert Service.of({"services": [full]}) == Service(8000, True, "suspend", 2, 5, 9)
    spellings = {True: "stop", False: "off", None: "off", "off": "off", "stop": "stop", "suspend": "suspend"}
    for value, meaning in spellings.items():
        read = Service.of({"services": [service(autostop=value)]})
        assert read is not None
        assert read.autostop == meaning


def test_only_machines_with_an_http_service_are_candidates() -> None:
    never = [
        machine(config={}),
        machine(config=None),
        machine(config={"services": []}),
        machine(config={"services": [service(protocol="udp")]}),
        machine(config={"services": [service(ports=[{"port": 5432, "handlers": ["pg_tls"]}])]}),
        machine(config={"services": [service(ports=None)]}),
        machine(config={"services": [service(internal_port=None)]}),
        machine(cordoned=True),
        machine(host_status="unreachable"),
        machine(private_ip=""),
    ]
    assert candidates(never) == []
    found = candidates([machine(config={"services": [service()]})])
    assert [(each.id, each.service.port) for each in found] == [("m1", 8000)]


def at(name: str, region: str = "iad", state: str = "started", group: str = "", **fields: Any) -> Candidate:
    return Candidate(name, region, state, "127.1.0.1", group, Service(8000, **fields))


def verdict(choice: Choice) -> tuple[str, str | None]:
    return choice.verdict.value, choice.machine.id if choice.machine else None


NO_LOAD: Counter[str] = Counter()
FLEET = [at("near"), at("far", "nrt"), at("asleep", "cdg", "stopped", autostart=True), at("down", "fra", "stopped")]


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (Wish(), ("send", "near")),
        (Wish(not_to=frozenset({"near"})), ("send", "far")),
        (Wish(instance="far", instance_forced=True), ("send", "far")),
        (Wish(instance="asleep", instance_forced=True), ("start", "asleep")),
        (Wish(instance="down", instance_forced=True), ("nobody", None)),
        (Wish(instance="unknown", instance_forced=True), ("nobody", None)),
        (Wish(instance="unknown"), ("send", "near")),
        (Wish(instance="down"), ("send", "near")),
        (Wish(regions=("nrt",), region_forced=True), ("send", "far")),
        (Wish(regions=("apac",), region_forced=True), ("send", "far")),
        (Wish(regions=("cdg",), region_forced=True), ("start", "asleep")),
        (Wish(regions=("eu", "nrt"), region_forced=True), ("start", "asleep")),
        (Wish(regions=("syd", "nrt"), region_forced=True), ("send", "far")),
        (Wish(regions=("syd", "any"), region_forced=True), ("send", "near")),
        (Wish(regions=("syd",), region_forced=True), ("nobody", None)),
        (Wish(regions=("syd",)), ("send", "near")),
        (Wish(regions=("nrt",), instance="unknown"), ("send", "far")),
    ],
)
def test_where_a_request_goes(wish: Wish, expected: tuple[str, str | None]) -> None:
    assert verdict(choose(FLEET, wish, NO_LOAD, "iad")) == expected


def test_the_least_loaded_of_the_closest_takes_it() -> None:
    fleet = [at("a", soft_limit=5), at("b", soft_limit=5), at("far", "nrt", soft_limit=5)]
    assert verdict(choose(fleet, Wish(), Counter(a=2, b=1), "iad")) == ("send", "b")
    # Soft limits do not send a request across the world; hard ones do.
    assert verdict(choose(fleet, Wish(), Counter(a=5, b=6), "iad")) == ("send", "a")
    hard = [at("a", hard_limit=1), at("far", "nrt")]
    assert verdict(choose(hard, Wish(), Counter(a=1), "iad")) == ("send", "far")


def test_a_crowd_wakes_another_machine() -> None:
    fleet = [at("a", soft_limit=2, hard_limit=3), at("b", state="suspended", autostart=True)]
    assert choose(fleet, Wish(), Counter(a=1), "iad").also_start is None
    crowded = choose(fleet, Wish(), Counter(a=2), "iad")
    assert (verdict(crowded), crowded.also_start) == (("send", "a"), fleet[1])
    assert verdict(choose(fleet, Wish(), Counter(a=3), "iad")) == ("start", "b")


def test_a_full_or_coming_machine_is_waited_for() -> None:
    assert verdict(choose([at("a", hard_limit=1)], Wish(), Counter(a=1), "iad")) == ("wait", None)
    assert verdict(choose([at("a", state="starting")], Wish(), NO_LOAD, "iad")) == ("wait", None)
    assert verdict(choose([at("a", state="stopping", autostart=True)], Wish(), NO_LOAD, "iad")) == ("wait", None)
    assert verdict(choose([at("a", state="stopping")], Wish(), NO_LOAD, "iad")) == ("nobody", None)
    assert verdict(choose([at("a", state="failed")], Wish(), NO_LOAD, "iad")) == ("nobody", None)
    assert verdict(choose([], Wish(), NO_LOAD, "iad")) == ("nobody", None)


def test_a_machine_that_refused_is_asked_last() -> None:
    assert verdict(choose([at("a"), at("b", "nrt")], Wish(), NO_LOAD, "iad", {"a"})) == ("send", "b")
    assert verdict(choose([at("a")], Wish(), NO_LOAD, "iad", {"a"})) == ("wait", None)


def test_regions_have_aliases() -> None:
    assert is_in("iad", "us")
    assert is_in("yyz", "na")
    assert is_in("iad", "na")
    assert is_in("zzz", "any")
    assert not is_in("yyz", "us")
    assert not is_in("zzz", "iad")


def test_idle_machines_beyond_the_least_number_are_to_stop() -> None:
    fleet = [
        at("busy", autostop="stop"),
        at("old", autostop="stop"),
        at("older", autostop="stop"),
        at("fresh", autostop="stop"),
        at("always"),
        at("down", state="stopped", autostop="stop"),
    ]
    idle_since = {"busy": 0.0, "old": 2.0, "older": 1.0, "fresh": 99.0, "always": 0.0}
    chosen = to_stop(fleet, Counter(busy=1), idle_since, before=50)
    assert [each.id for each in chosen] == ["older", "old"]
    least = [at(name, autostop="stop", min_running=2) for name in ("a", "b", "c")]
    assert [each.id for each in to_stop(least, NO_LOAD, {"a": 3.0, "b": 1.0, "c": 2.0}, before=50)] == ["b"]
    two_groups = [at("w", group="web", autostop="stop", min_running=1), at("x", group="api", autostop="stop")]
    assert [each.id for each in to_stop(two_groups, NO_LOAD, {"w": 1.0, "x": 1.0}, before=50)] == ["x"]
