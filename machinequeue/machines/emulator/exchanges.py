"""What every request goes through: who asks, how often, what misbehaves, what is answered, what is written down."""

from __future__ import annotations

import json
import socket
import struct
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from machinequeue.machines.emulator.answers import Refusal, unauthorized
from machinequeue.machines.emulator.calls import Call, Handler, Reply
from machinequeue.machines.emulator.faults import Faults
from machinequeue.machines.emulator.limits import Limits
from machinequeue.machines.emulator.names import now_ms, ulid
from machinequeue.machines.emulator.world import World

MACAROONS = ("fm1r_", "fm1a_", "fm2_")
SCHEMES = ("bearer", "flyv1")
EDGE_AGENT = "machinequeue-edge"
"""Who plays Fly's proxy, which knows the machines without asking the API, and is not under its limits."""

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Office:
    """What the exchanges share. `token` is the one token that is accepted, as `bare` gives it."""

    world: World
    limits: Limits
    faults: Faults
    token: frozenset[str] = field(repr=False)

    def admit(self, request: Request) -> None:
        """Raise the 401 refusal unless the request carries the token."""
        scheme, _, token = request.headers.get("authorization", "").strip().partition(" ")
        if scheme.lower() not in SCHEMES or _parts(token) != self.token:
            raise unauthorized()


def bare(token: str) -> frozenset[str]:
    """A token without its scheme, as what it is made of; of a mixture the macaroons alone, as clients send them."""
    scheme, _, rest = token.strip().partition(" ")
    parts = _parts(rest if scheme.lower() in SCHEMES else token)
    return frozenset(part for part in parts if part.startswith(MACAROONS)) or parts


def _parts(token: str) -> frozenset[str]:
    # Compared as a set with the token that is accepted: a header that adds a user token to the macaroons is refused.
    return frozenset(part.strip() for part in token.split(","))


def endpoint(office: Office, handler: Handler, action: str) -> Endpoint:
    """Wrap a handler, which returns JSON or a Reply or raises a Refusal, as a Starlette endpoint.

    `action` names what is asked, for rate limits and faults.
    """

    async def answer(request: Request) -> Response:
        request_id = f"{ulid()}-{office.world.ground.region}"
        call = Call(office.world, request, action)
        try:
            reply = await _perform(office, call, handler)
            response = _respond(reply, request_id)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            reply = _refusal(error)
            response = _respond(reply, request_id)
        if request.method != "GET":
            _note(office, request, reply, request_id)
        return response

    return answer


def direct(office: Office, handler: Handler) -> Endpoint:
    """As `endpoint`, for the emulator's own calls: no rate limit, no fault, nothing written down."""

    async def answer(request: Request) -> Response:
        try:
            office.admit(request)
            found = await handler(Call(office.world, request, ""))
            reply = found if isinstance(found, Reply) else Reply(found)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:
            reply = _refusal(error)
        return _respond(reply, ulid())

    return answer


async def _perform(office: Office, call: Call, handler: Handler) -> Reply:
    faults = office.faults
    reply = await faults.arriving(call) if faults else None
    if reply is not None:
        return reply
    office.admit(call.request)
    where = call.request.path_params
    if call.request.headers.get("user-agent") != EDGE_AGENT:
        office.limits.spend(call.action, where.get("machine") or where.get("app", ""))
    reply = await faults.before(call) if faults else None
    if reply is not None:
        return reply
    try:
        found = await handler(call)
    except Refusal:
        if faults:
            faults.refused(call)
        raise
    reply = found if isinstance(found, Reply) else Reply(found)
    return await faults.after(call, reply) if faults else reply


def _refusal(error: Exception) -> Reply:
    if isinstance(error, Refusal):
        return Reply(error.body, error.status)
    # A bug of ours must look like a server's failure, not like a broken connection.
    traceback.print_exception(error, file=sys.stderr)
    return Reply({"error": "internal: the emulator failed, its stderr says how"}, 500)


def _note(office: Office, request: Request, reply: Reply, request_id: str) -> None:
    fields: dict[str, Any] = {key: request.path_params[key] for key in ("app", "machine") if key in request.path_params}
    if isinstance(reply.body, dict) and "instance_id" in reply.body:
        fields |= {"machine": reply.body["id"], "name": reply.body["name"]}
    if reply.delivery != "whole":
        fields["delivery"] = reply.delivery
    office.world.ground.journal.write(
        "request",
        method=request.method,
        path=request.url.path,
        status=reply.status,
        request_id=request_id,
        **fields,
    )


def _respond(reply: Reply, request_id: str) -> Response:
    date = formatdate(now_ms() / 1000, usegmt=True)  # uvicorn's would be this computer's, whatever the clock's fault
    headers = {**reply.headers, "fly-request-id": request_id, "date": date}
    if reply.delivery in ("lost", "reset"):
        return _NoAnswer(reset=reply.delivery == "reset")
    if reply.delivery != "whole":
        content = json.dumps(reply.body).encode()
        return _HalfAnswer(content, reply.status, headers, "application/json", cut=reply.delivery == "cut")
    if reply.media:
        return Response(reply.body, reply.status, headers, reply.media)
    if reply.body is None:
        return Response(status_code=reply.status, headers=headers)
    return JSONResponse(reply.body, reply.status, headers)


class _NoAnswer(Response):
    """The connection ends instead."""

    def __init__(self, reset: bool) -> None:
        super().__init__()
        self._reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _hang_up(receive, self._reset)


class _HalfAnswer(Response):
    """The first half of the body, then the end of the connection; or as if the half were all."""

    def __init__(self, content: bytes, status: int, headers: dict[str, str], media: str, cut: bool) -> None:
        super().__init__(content if cut else content[: len(content) // 2], status, headers, media)
        self._cut = cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._cut:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body[: len(self.body) // 2])
        await send({"type": "http.response.body", "body": half, "more_body": True})
        await _hang_up(receive, reset=False)


async def _hang_up(receive: Receive, reset: bool) -> None:
    # ASGI has no word for this, but what uvicorn hands out as `receive` is a method of an object that knows the
    # transport.
    transport = receive.__self__.transport  # type: ignore[attr-defined]
    if reset:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass


async def page_not_found(request: Request, error: Exception) -> Response:
    """What is not routed, or not with this method: plain text, before the token is looked at."""
    del request, error
    return PlainTextResponse("404 page not found\n", 404, {"fly-request-id": ulid()})
