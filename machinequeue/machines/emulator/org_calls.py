"""The calls about all of an organisation: its machines, and where it may have more."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from machinequeue.machines.emulator import names, regions
from machinequeue.machines.emulator.answers import bad_request
from machinequeue.machines.emulator.calls import Call
from machinequeue.machines.emulator.configs import guest_of
from machinequeue.machines.emulator.machine import Machine
from machinequeue.machines.emulator.machine_calls import LARGEST_PAGE, filters
from machinequeue.machines.emulator.world import ORGANIZATION

REGION_LIMIT = 1000
LARGEST_COUNT = 100_000

Position = tuple[int, str]


async def org_machines(call: Call) -> Any:
    """Machines of every app by the time of their last change; the cursor continues after a row."""
    _check_organization(call.request.path_params["org"])
    limit = call.number("limit", LARGEST_PAGE, 1, LARGEST_PAGE)
    after = _position(call)
    tests = filters(call)
    rows = sorted(
        ((machine.updated_ms, machine.id), app.name, machine)
        for app in call.apps.values()
        for machine in app.machines.values()
        if (machine.updated_ms, machine.id) > after and all(test(machine) for test in tests)
    )
    page = rows[:limit]
    answer: dict[str, Any] = {"machines": [_row(name, machine, call.flag("summary")) for _, name, machine in page]}
    if page:
        updated_ms, machine_id = page[-1][0]
        answer |= {"last_machine_id": machine_id, "last_updated_at": names.rfc3339(updated_ms)}
    if len(rows) > limit:
        answer["next_cursor"] = f"{updated_ms}-{machine_id}"
    return {**answer, "error_regions": []}


def _position(call: Call) -> Position:
    cursor, text = call.query("cursor"), call.query("updated_after")
    if cursor:
        moment, dash, machine_id = cursor.partition("-")
        if not dash or not moment.isascii() or not moment.isdigit():
            raise bad_request("invalid cursor")
        return int(moment), machine_id
    if not text:
        return 0, ""
    try:
        moment_after = datetime.fromisoformat(text)
    except ValueError:
        raise bad_request(f"updated_after {text!r} is not an RFC 3339 time") from None
    if moment_after.tzinfo is None:
        raise bad_request(f"updated_after {text!r} has no offset from UTC")
    return int(moment_after.timestamp() * 1000), "~"  # later than every machine id


def _row(app: str, machine: Machine, summary: bool) -> dict[str, Any]:
    shown = machine.described(summary=True)
    fields = ("id", "name", "state", "region", "version", "private_ip", "created_at", "updated_at")
    row = {"app_name": app, **{field: shown[field] for field in fields}}
    if not summary:
        known = ("image", "guest", "metadata")
        row["config"] = {field: machine.config[field] for field in known if field in machine.config}
    return row


async def placements(call: Call) -> Any:
    """Where so many machines would go: all to the region asked for first. `count` 0 asks for each region's limit."""
    body = await call.body()
    _check_organization(body.get("org_slug"))
    count = body.get("count") or 0
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= LARGEST_COUNT:
        raise bad_request(f"count must be a whole number up to {LARGEST_COUNT}")
    _check_guest(body.get("compute"))
    possible = _regions(body.get("region"), call.world.ground.region)
    if not count:
        return {"regions": [_placement(code, REGION_LIMIT) for code in possible]}
    return {"regions": [_placement(possible[0], count)]}


def _placement(region: str, count: int) -> dict[str, Any]:
    return {"region": region, "count": count, "concurrency": count}


def _check_organization(slug: object) -> None:
    if slug != ORGANIZATION:
        raise bad_request(f"organization {slug!r} not found, there is only {ORGANIZATION!r}")


def _regions(asked: object, nearest: str) -> list[str]:
    if not isinstance(asked, str | None):
        raise bad_request("region must be a string")
    return regions.candidates(asked or "any", nearest)


def _check_guest(compute: object) -> None:
    if compute is None:
        return
    if not isinstance(compute, Mapping):
        raise bad_request("compute must be an object")
    problem = guest_of({"guest": compute}).problem()
    if problem:
        raise bad_request(problem)
