"""One request as the handlers see it, and what they give back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from machinequeue.machines.emulator.answers import Refusal, bad_request
from machinequeue.machines.emulator.machine import Machine
from machinequeue.machines.emulator.world import App, World

LARGEST_BODY = 8 * 1024 * 1024
LARGEST_NUMBER = 2**63 - 1


@dataclass(frozen=True)
class Reply:
    """A success other than 200 with JSON; a body of None is an empty one, with `media` it is text of that type.

    `delivery` says how much of it arrives: "whole", "cut" (half, then the connection ends), "garbled" (half, as if
    it were all), "lost" (the connection ends without an answer) or "reset" (as "lost", by a TCP reset).
    """

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media: str = ""
    delivery: str = "whole"


@dataclass
class Call:
    """One request of somebody who may ask. `action` names what is asked, as rate limits and faults know it.

    `shown` is what a list shows in the place of the apps as they are, `delayed_by` the fault that delays its boot.
    """

    world: World
    request: Request
    action: str
    shown: Mapping[str, App] | None = None
    delayed_by: object = None
    _parsed: dict[str, Any] | None = field(default=None, init=False, repr=False)

    @property
    def apps(self) -> Mapping[str, App]:
        """All apps by name, as they are to be shown."""
        return self.world.apps if self.shown is None else self.shown

    @property
    def app(self) -> App:
        """The app of the path."""
        app = self.world.app(self.request.path_params["app"])
        return self.apps.get(app.name, app)

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
        """The JSON object of the request, the same one each time; an absent body is an empty one."""
        if self._parsed is None:
            self._parsed = _parsed(await self._content())
        return self._parsed

    async def _content(self) -> bytes:
        content = bytearray()
        async for chunk in self.request.stream():
            content += chunk
            if len(content) > LARGEST_BODY:
                raise Refusal(413, "http: request body too large")
        return bytes(content)


def _parsed(data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    try:
        body = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise bad_request("request body is not JSON") from None
    if not isinstance(body, dict):
        kinds = {list: "array", str: "string", bool: "bool", int: "number", float: "number"}
        raise bad_request(f"json: cannot unmarshal {kinds.get(type(body), 'null')} into Go value of type object")
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _whole(text: str) -> int:
    number = int(text)
    if abs(number) > LARGEST_NUMBER:
        raise ValueError("a number is too large")
    return number


Handler = Callable[[Call], Awaitable[Any]]
