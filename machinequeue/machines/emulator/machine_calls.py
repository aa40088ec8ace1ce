"""The calls about machines."""

from __future__ import annotations

import re
from typing import Any

from machinequeue.machines.emulator import configs
from machinequeue.machines.emulator.answers import bad_request, failed_precondition, machine_not_found
from machinequeue.machines.emulator.calls import Call, Reply
from machinequeue.machines.emulator.machine import Machine
from machinequeue.machines.emulator.world import App

OK = {"ok": True}
WAIT_STATES = ("started", "stopped", "suspended", "destroyed", "failed", "settled")
LONGEST_WAIT = 60
LARGEST_PAGE = 1000


async def create(call: Call) -> Any:
    return call.app.create_machine(await call.body()).described()


async def get(call: Call) -> Any:
    return call.machine.described()


async def find(call: Call) -> Any:
    """The list: filters are joined by AND; with `limit` in pages, the cursor of the next in a header."""
    app = call.app
    limit = call.number("limit", 0, 1, LARGEST_PAGE)
    cursor = call.query("cursor")
    machines = _after(app, cursor)
    wanted = _filters(call)
    summary = call.flag("summary")
    found: list[Machine] = []
    for machine in machines:
        if limit and len(found) == limit:
            return Reply([each.described(summary) for each in found], headers={"fly-next-cursor": found[-1].id})
        if all(test(machine) for test in wanted):
            found.append(machine)
    return [each.described(summary) for each in found]


def _after(app: App, cursor: str) -> list[Machine]:
    machines = [*app.machines.values()]
    if not cursor:
        return machines
    for position, machine in enumerate(machines):
        if machine.id == cursor:
            return machines[position + 1 :]
    raise bad_request("invalid cursor")


def _filters(call: Call) -> list[Any]:
    tests: list[Any] = []
    if not call.flag("include_deleted"):
        tests.append(lambda machine: machine.state != "destroyed")
    states = {state for state in call.query("state").split(",") if state}
    if states:
        tests.append(lambda machine: machine.state in states)
    region = call.query("region")
    if region:
        tests.append(lambda machine: machine.region == region)
    prefix = "metadata."
    pairs = [
        (key[len(prefix) :], value) for key, value in call.request.query_params.multi_items() if key.startswith(prefix)
    ]
    if pairs:
        tests.append(lambda machine: all(machine.metadata.get(key) == value for key, value in pairs))
    return tests


async def start(call: Call) -> Any:
    return {"previous_state": call.machine.start(), "migrated": False, "new_host": ""}


async def stop(call: Call) -> Any:
    machine = call.machine
    machine.stop(*configs.stop_of(machine.config, await call.body()))
    return OK


async def restart(call: Call) -> Any:
    machine = call.machine
    asked = {"signal": call.query("signal"), "timeout": call.query("timeout")}
    machine.restart(*configs.stop_of(machine.config, asked))
    return OK


async def signal(call: Call) -> Any:
    machine = call.machine
    machine.signal(configs.signal_number((await call.body()).get("signal"), configs.SIGNALS, "signal"))
    return OK


async def destroy(call: Call) -> Any:
    call.machine.destroy(force=call.flag("force") or call.flag("kill"))
    return OK


async def wait(call: Call) -> Any:
    machine = call.machine
    states = [state for text in call.request.query_params.getlist("state") for state in text.split(",") if state]
    for state in states:
        if state not in WAIT_STATES:
            raise bad_request(f"state {state!r} is not one of: {', '.join(WAIT_STATES)}")
    version = call.query("version") or call.query("instance_id")
    if version and version != machine.instance_id:
        raise machine_not_found()
    reached = await machine.wait(states or ["started"], _wait_seconds(call.query("timeout") or str(LONGEST_WAIT)))
    newest = machine.history.newest(1)
    return {"ok": True, "state": reached, "event_id": newest[0]["id"], "version": machine.instance_id}


def _wait_seconds(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}s?", text):
        raise bad_request(f"timeout: invalid duration {text!r}")
    value = int(text.removesuffix("s"))
    if not 1 <= value <= LONGEST_WAIT:
        raise bad_request("invalid WaitMachineRequest.Timeout: value must be inside range [1s, 1m0s]")
    return value


async def events(call: Call) -> Any:
    return call.machine.history.newest(call.number("limit", 20, 1, 50))


async def read_metadata(call: Call) -> Any:
    return call.machine.metadata


async def merge_metadata(call: Call) -> Any:
    machine = call.machine
    body = await call.body()
    changes = body.get("metadata")
    if not isinstance(changes, dict) or not all(value is None or isinstance(value, str) for value in changes.values()):
        raise bad_request("metadata must be a map of strings")
    if body.get("machine_version") not in (None, "", machine.instance_id):
        raise failed_precondition("machine_version does not match the current version")
    machine.set_metadata(changes)
    return Reply(status=204)


async def read_entry(call: Call) -> Any:
    value = call.machine.metadata.get(call.request.path_params["key"])
    if value is None:
        return Reply({"error": "not_found: metadata key not found"}, 404)
    return {"value": value}


async def write_entry(call: Call) -> Any:
    machine = call.machine
    value = (await call.body()).get("value")
    if not isinstance(value, str):
        raise bad_request("value must be a string")
    machine.set_metadata({call.request.path_params["key"]: value})
    return Reply(status=204)


async def remove_entry(call: Call) -> Any:
    call.machine.set_metadata({call.request.path_params["key"]: None})
    return Reply(status=204)
