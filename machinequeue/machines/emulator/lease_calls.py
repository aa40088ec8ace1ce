"""The calls about leases."""

from __future__ import annotations

from typing import Any

from machinequeue.machines.emulator.answers import bad_request, machine_not_found
from machinequeue.machines.emulator.calls import Call, Reply
from machinequeue.machines.emulator.leases import ttl_of

NONCE_HEADER = "fly-machine-lease-nonce"


def nonce_of(call: Call) -> str:
    """The nonce that the caller shows, "" for none."""
    return str(call.request.headers.get(NONCE_HEADER, ""))


async def create(call: Call) -> Any:
    body = await call.body()
    description = body.get("description") or ""
    if not isinstance(description, str):
        raise bad_request("description must be a string")
    ttl = ttl_of(call.query("ttl") or body.get("ttl"))
    return Reply(call.machine.acquire_lease(ttl, description, nonce_of(call)).described(), 201)


async def get(call: Call) -> Any:
    return call.machine.lease().described()


async def release(call: Call) -> Any:
    nonce = nonce_of(call)
    if not nonce:
        raise bad_request(f"the header {NONCE_HEADER} is required")
    call.machine.leases.release(nonce)
    return {"ok": True}


def demand(call: Call) -> None:
    """Refuse at once when somebody else holds the lease, as Fly does for a start and an update."""
    call.machine.leases.demand(nonce_of(call))


async def free(call: Call) -> None:
    """Hold the call until nobody else has the lease, as Fly does with a stop and a destroy."""
    # One who hung up meanwhile must not have his machine stopped minutes later.
    if not await call.machine.leases.free(nonce_of(call), call.request.is_disconnected):
        raise machine_not_found()
