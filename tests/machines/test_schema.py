from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from machinequeue.machines.schema import (
    CreateRequest,
    Event,
    ExecResult,
    ExitEvent,
    Guest,
    Lease,
    LogPage,
    Machine,
    OrgMachines,
    Placement,
    Region,
    TokenInfo,
    parse_time,
)


def test_an_empty_answer_is_a_machine_without_properties() -> None:
    for nothing in ({}, None, [], "text", {"config": None, "events": None, "image_ref": None, "id": None}):
        machine = Machine.parse(nothing)
        assert (machine.id, machine.state, machine.config, machine.events) == ("", "", None, ())
        assert machine.exit_event is None
        json.dumps(machine.as_dict())


def test_metadata_survives_a_host_that_could_not_be_asked() -> None:
    found = {"id": "1", "host_status": "unreachable", "config": None, "incomplete_config": {"metadata": {"mq": "7"}}}
    machine = Machine.parse(found, "01REQ")
    assert (machine.config, machine.metadata, machine.host_status) == (None, {"mq": "7"}, "unreachable")
    assert (machine.guest, machine.image, machine.request_id) == (None, "", "01REQ")


def exit_at(timestamp: int, code: int, **where: object) -> dict[str, object]:
    return {"type": "exit", "timestamp": timestamp, "request": {"exit_event": {"exit_code": code}, **where}}


def test_the_newest_exit_counts_whatever_the_order() -> None:
    events = [exit_at(5, 1), {"type": "destroy", "timestamp": 30}, exit_at(20, 2), exit_at(10, 3)]
    for order in (events, events[::-1]):
        machine = Machine.parse({"events": order})
        assert machine.exit_event is not None
        assert machine.exit_event.exit_code == 2
        assert [event.timestamp for event in machine.events] == [30, 20, 10, 5]


def test_an_exit_event_may_lie_under_the_monitor_event() -> None:
    inner = {"exit_event": {"exit_code": 137, "oom_killed": True, "exited_at": 1653346106636}}
    event = Event.parse({"type": "exit", "request": {"MonitorEvent": inner}})
    assert event.exit is not None
    assert event.exit.oom_killed
    assert event.exit.exited_at == datetime(2022, 5, 23, 22, 48, 26, 636000, UTC)


@pytest.mark.parametrize("nonsense", [None, {}, [], "x", 3])
def test_no_exit_event_is_none(nonsense: object) -> None:
    assert ExitEvent.parse(nonsense) is None
    assert Event.parse({"request": nonsense}).exit is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-09-20T10:11:12Z", datetime(2026, 9, 20, 10, 11, 12, tzinfo=UTC)),
        ("2026-09-20T10:11:12.123456789Z", datetime(2026, 9, 20, 10, 11, 12, 123456, UTC)),
        ("1653346106636", datetime(2022, 5, 23, 22, 48, 26, 636000, UTC)),
        (10**30, None),
        (True, None),
        ("soon", None),
        ("", None),
    ],
)
def test_times_come_as_text_or_milliseconds(text: object, moment: datetime | None) -> None:
    assert parse_time(text) == moment


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_lease_comes_flat_or_wrapped(wrapped: bool) -> None:
    flat = {"nonce": "abc", "expires_at": 1653346106, "owner": "me", "description": "d", "version": "01"}
    lease = Lease.parse({"status": "success", "data": flat} if wrapped else flat)
    assert lease == Lease("abc", 1653346106, "me", "d")
    assert "abc" not in repr(lease)


@pytest.mark.parametrize(
    ("guest", "problem"),
    [
        (Guest("shared", 1, 256), ""),
        (Guest("shared", 8, 16384), ""),
        (Guest("performance", 1, 2048), ""),
        (Guest("performance", 8, 8192), "minimum required 16384 MiB"),
        (Guest("shared", 1, 4096), "maximum allowed 2048 MiB"),
        (Guest("shared", 3, 1024), "cpus"),
        (Guest("shared", 1, 300), "multiple of 256"),
        (Guest("tiny", 1, 256), "cpu_kind"),
    ],
)
def test_sizes_that_fly_sells(guest: Guest, problem: str) -> None:
    assert (problem in guest.problem()) if problem else guest.problem() == ""


def test_env_shows_neither_in_reprs_nor_in_what_is_stored() -> None:
    config = {"image": "i", "env": {"KEY": "sesame-open"}, "metadata": {"mq_machine": "m"}}
    request = CreateRequest("m", "iad", config)
    machine = Machine.parse({"id": "1", "config": config, "nonce": "sesame-nonce"})
    assert "sesame" not in repr(request) + repr(machine) + json.dumps(machine.as_dict())
    assert request.as_dict()["config"]["env"] == {"KEY": "sesame-open"}


def test_only_what_was_asked_is_sent() -> None:
    assert CreateRequest("m", None, {"image": "i"}).as_dict() == {"name": "m", "config": {"image": "i"}}
    asked = CreateRequest("m", "iad,us", {"image": "i"}, skip_launch=True, lease_ttl=5).as_dict()
    assert (asked["region"], asked["skip_launch"], asked["lease_ttl"]) == ("iad,us", True, 5)


NOTHING: list[object] = [None, {}, [], "text", 3, {"data": None}, {"regions": [None]}, {"machines": {}}, {"tokens": 7}]


@pytest.mark.parametrize("nothing", NOTHING)
def test_answers_without_what_was_asked_for_are_empty_values(nothing: object) -> None:
    assert ExecResult.parse(nothing) == ExecResult("", "", None, 0)
    assert LogPage.parse(nothing) == LogPage(())
    assert OrgMachines.parse(nothing) == OrgMachines(())
    assert TokenInfo.parse_all(nothing) == ()
    assert all(region.code == "" for region in Region.parse_all(nothing))
    assert all(placement.count == 0 for placement in Placement.parse_all(nothing))


@pytest.mark.parametrize("spelled", ["Regions", "regions"])
def test_regions_come_in_two_spellings(spelled: str) -> None:
    rows = [{"code": "iad", "name": "Ashburn", "requires_paid_plan": True, "new_field": 1}, {"code": "cdg"}]
    assert Region.parse_all({spelled: rows, "nearest": "iad"}) == (
        Region("iad", "Ashburn", requires_paid_plan=True),
        Region("cdg"),
    )


def test_a_page_of_a_log() -> None:
    attributes = {
        "timestamp": "2026-09-20T10:11:12Z",
        "message": "hello",
        "level": "info",
        "instance": "148e21",
        "region": "iad",
        "meta": {"event": {"provider": "runner"}},
    }
    page = LogPage.parse({"data": [{"id": "1", "attributes": attributes}, {}], "meta": {"next_token": 1653346106636}})
    [line, empty] = page.lines
    assert (line.message, line.provider, line.instance, line.region) == ("hello", "runner", "148e21", "iad")
    assert line.timestamp == datetime(2026, 9, 20, 10, 11, 12, tzinfo=UTC)
    assert (empty.message, page.next_token) == ("", "1653346106636")


def test_machines_of_an_organisation_name_their_app_and_the_silent_regions() -> None:
    rows = [{"id": "1", "app_name": "shop", "state": "started", "config": {"metadata": {"mq_site": "s"}}}]
    found = OrgMachines.parse({"machines": rows, "error_regions": ["ord"], "next_cursor": "c"})
    assert [(machine.app, machine.metadata) for machine in found.machines] == [("shop", {"mq_site": "s"})]
    assert (found.error_regions, found.next_cursor) == (("ord",), "c")


def test_numbers_that_are_none_are_left_out() -> None:
    event = ExitEvent.parse({"exit_code": float("inf"), "signal": float("nan"), "guest_exit_code": True})
    assert event == ExitEvent()
