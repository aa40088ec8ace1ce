"""What every call goes through: who asks, how often, what is answered, what is written down."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from machinequeue.machines.emulator.answers import Refusal, bad_request, unauthorized
from machinequeue.machines.emulator.limits import Limits
from machinequeue.machines.emulator.machine import Machine
from machinequeue.machines.emulator.names import ulid
from machinequeue.machines.emulator.world import App, World

READS = ("GET", "HEAD")


def bare(token: str) -> str:
    """A token without its scheme."""
    for scheme in ("bearer ", "flyv1 "):
        if token.lower().startswith(scheme):
            return token[len(scheme) :].strip()
    return token.strip()


@dataclass(frozen=True)
class Office:
    """What the calls share. `token` is the one token that is accepted."""

    world: World
    limits: Limits
    token: str = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """A success other than 200 with JSON; a body of None is an empty one."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request of somebody who may ask."""

    office: Office
    request: Request

    @property
    def app(self) -> App:
        """The app of the path."""
        return self.office.world.app(self.request.path_params["app"])

    @property
    def machine(self) -> Machine:
        """The machine of the path."""
        return self.app.machine(self.request.path_params["machine"])

    def query(self, name: str, default: str = "") -> str:
        """A query parameter."""
        return self.request.query_params.get(name, default)

    def flag(self, name: str) -> bool:
        """A query parameter that is a yes or no."""
        return self.query(name).lower() in ("true", "1", "t")

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A query parameter that is a whole number within bounds."""
        text = self.query(name)
        if not text:
            return default
        if not re.fullmatch("[0-9]{1,19}", text) or not least <= int(text) <= most:
            raise bad_request(f"{name} must be a number between {least} and {most}")
        return int(text)

    async def body(self) -> dict[str, Any]:
        """The JSON object of the request; an absent body is an empty one."""
        data = await self.request.body()
        if not data:
            return {}
        try:
            body = json.loads(data, parse_constant=_refuse_constant)
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError):
            raise bad_request("request body is not JSON") from None
        if not isinstance(body, dict):
            kinds = {list: "array", str: "string", bool: "bool", int: "number", float: "number"}
            raise bad_request(f"json: cannot unmarshal {kinds.get(type(body), 'null')} into Go value of type object")
        return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


Handler = Callable[[Call], Awaitable[Any]]
Endpoint = Callable[[Request], Awaitable[Response]]


def endpoint(office: Office, handler: Handler, action: str = "") -> Endpoint:
    """Wrap a handler, which returns JSON or a Reply or raises a Refusal, as a Starlette endpoint.

    `action` names the bucket of its rate limit, "" for none.
    """

    async def answer(request: Request) -> Response:
        request_id = f"{ulid()}-{office.world.ground.region}"
        try:
            _admit(office, request, action)
            reply = await handler(Call(office, request))
            reply = reply if isinstance(reply, Reply) else Reply(reply)
        except Refusal as refusal:
            reply = Reply(refusal.body, refusal.status)
        except Exception:  # a bug of ours must look like a server's failure, not like a broken connection
            traceback.print_exc(file=sys.stderr)
            reply = Reply({"error": "internal: the emulator failed, its stderr says how"}, 500)
        if request.method not in READS:
            _note(office, request, reply, request_id)
        return _respond(reply, request_id)

    return answer


def _admit(office: Office, request: Request, action: str) -> None:
    if bare(request.headers.get("authorization", "")) != office.token:
        raise unauthorized()
    if action:
        where = request.path_params
        office.limits.spend(action, where.get("machine") or where.get("app", ""))


def _note(office: Office, request: Request, reply: Reply, request_id: str) -> None:
    fields: dict[str, Any] = {key: request.path_params[key] for key in ("app", "machine") if key in request.path_params}
    if isinstance(reply.body, dict) and "instance_id" in reply.body:
        fields |= {"machine": reply.body["id"], "name": reply.body["name"]}
    office.world.ground.journal.write(
        "request",
        method=request.method,
        path=request.url.path,
        status=reply.status,
        request_id=request_id,
        **fields,
    )


def _respond(reply: Reply, request_id: str) -> Response:
    headers = {**reply.headers, "fly-request-id": request_id}
    if reply.body is None:
        return Response(status_code=reply.status, headers=headers)
    return JSONResponse(reply.body, reply.status, headers)


async def page_not_found(request: Request, error: Exception) -> Response:
    """What is not routed, or not with this method: plain text, before the token is looked at."""
    del request, error
    return PlainTextResponse("404 page not found\n", 404, {"fly-request-id": ulid()})
