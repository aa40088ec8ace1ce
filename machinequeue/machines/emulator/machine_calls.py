"""The calls about machines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from machinequeue.machines.emulator import configs, lease_calls
from machinequeue.machines.emulator.answers import bad_request, failed_precondition, machine_not_found, not_emulated
from machinequeue.machines.emulator.calls import Call, Reply
from machinequeue.machines.emulator.leases import ttl_of
from machinequeue.machines.emulator.machine import Machine
from machinequeue.machines.emulator.world import App

OK = {"ok": True}
WAIT_STATES = ("started", "stopped", "suspended", "destroyed", "failed", "settled")
LONGEST_WAIT = 60
LARGEST_PAGE = 1000
USUAL_EXEC_SECONDS = 60
LONGEST_EXEC_SECONDS = 3600


async def create(call: Call) -> Any:
    body = await call.body()
    ttl = _lease_ttl(body)
    return _leased(call.app.create_machine(body), ttl)


async def update(call: Call) -> Any:
    """The whole config anew; the lease, if there is one, must be the caller's."""
    body = await call.body()
    ttl = _lease_ttl(body)
    lease_calls.demand(call)
    machine = call.machine
    call.app.update_machine(machine, body)
    return _leased(machine, ttl, lease_calls.nonce_of(call))


def _lease_ttl(body: Mapping[str, Any]) -> int | None:
    return ttl_of(body["lease_ttl"]) if body.get("lease_ttl") else None


def _leased(machine: Machine, ttl: int | None, nonce: str = "") -> dict[str, Any]:
    """The machine; with `ttl` a lease of it is taken, and its nonce shown."""
    if ttl is None:
        return machine.described()
    lease = machine.acquire_lease(ttl, "", nonce if machine.leases.current else "")
    return {**machine.described(), "nonce": lease.nonce}


async def get(call: Call) -> Any:
    if call.query("version") not in ("", call.machine.instance_id):
        raise not_emulated("an earlier version of a machine")
    return call.machine.described(with_lease=call.flag("include_leases"))


async def find(call: Call) -> Any:
    """The list: filters are joined by AND; with `limit` in pages, the cursor of the next in a header."""
    app = call.app
    limit = call.number("limit", 0, 1, LARGEST_PAGE)
    cursor = call.query("cursor")
    machines = _after(app, cursor)
    wanted = filters(call)

    def rows() -> list[dict[str, Any]]:
        return [each.described(call.flag("summary"), call.flag("include_leases")) for each in found]

    found: list[Machine] = []
    for machine in machines:
        if limit and len(found) == limit:
            return Reply(rows(), headers={"fly-next-cursor": found[-1].id})
        if all(test(machine) for test in wanted):
            found.append(machine)
    return rows()


def _after(app: App, cursor: str) -> list[Machine]:
    machines = [*app.machines.values()]
    if not cursor:
        return machines
    for position, machine in enumerate(machines):
        if machine.id == cursor:
            return machines[position + 1 :]
    raise bad_request("invalid cursor")


def filters(call: Call) -> list[Any]:
    """The tests that a machine must pass to be listed."""
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
    lease_calls.demand(call)
    return {"previous_state": call.machine.start(), "migrated": False, "new_host": ""}


async def stop(call: Call) -> Any:
    machine = call.machine
    how = configs.stop_of(machine.config, await call.body())
    await lease_calls.free(call)
    machine.stop(*how)
    return OK


async def restart(call: Call) -> Any:
    lease_calls.demand(call)
    machine = call.machine
    asked = {"signal": call.query("signal"), "timeout": call.query("timeout")}
    machine.restart(*configs.stop_of(machine.config, asked))
    return OK


async def signal(call: Call) -> Any:
    machine = call.machine
    machine.signal(configs.signal_number((await call.body()).get("signal"), configs.SIGNALS, "signal"))
    return OK


async def cordon(call: Call) -> Any:
    call.machine.set_cordoned(True)
    return OK


async def uncordon(call: Call) -> Any:
    call.machine.set_cordoned(False)
    return OK


async def execute(call: Call) -> Any:
    body = await call.body()
    argv = _command(body)
    stdin, seconds = body.get("stdin") or "", body.get("timeout") or USUAL_EXEC_SECONDS
    if not isinstance(stdin, str):
        raise bad_request("stdin must be a string")
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 1 <= seconds <= LONGEST_EXEC_SECONDS:
        raise bad_request(f"timeout must be a whole number of seconds between 1 and {LONGEST_EXEC_SECONDS}")
    if body.get("container"):
        raise not_emulated("exec in a container")
    return await call.machine.execute(argv, stdin, seconds)


def _command(body: Mapping[str, Any]) -> list[str]:
    words = body.get("command")
    if not words and isinstance(body.get("cmd"), str):
        try:
            words = shlex.split(body["cmd"])
        except ValueError as error:
            raise bad_request(f"cmd: {error}") from None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise bad_request("command must be a list of strings, and have one at least")
    if any("\0" in word for word in words):
        raise bad_request("command must have no NUL")
    return words


async def destroy(call: Call) -> Any:
    await lease_calls.free(call)
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
