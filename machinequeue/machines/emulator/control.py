"""The control API, which Fly does not have: misbehave on demand. It takes the emulator's token and no fault meets it.

| call | what it does |
| --- | --- |
| `GET /_emulator/kinds` | the kinds of faults with their parameters, and the actions that calls are known by |
| `GET /_emulator/faults` | `{"faults": [...]}`: every fault that was not removed, with its counter `fired` |
| `POST /_emulator/faults` | add `{"kind": ..., ...}`: 201 and the fault |
| `DELETE /_emulator/faults` | remove all; answers them as they were at the end |
| `GET`, `DELETE /_emulator/faults/{id}` | one of them |
| `GET /_emulator/faults/{id}/wait?until=fired&count=1&timeout=10` | once it `fired`, or is `holding` calls; else 408 |
| `POST /_emulator/faults/{id}/release` | let held calls go on; `{"drop": true}` ends their connections |

Every fault takes `action` (a word or a list, or "any"), `app`, `machine` (id or name), `name` (a pattern such as
"report-*") and `region` as far as they make sense for it, `times` (null: every time) and `seconds` (null: until it is
removed).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from machinequeue.machines.emulator.answers import Refusal, bad_request
from machinequeue.machines.emulator.calls import Call, Handler, Reply
from machinequeue.machines.emulator.faults import ANY, Fault, Faults, Scope, Terms
from machinequeue.machines.emulator.misbehaviours import KINDS, regions, seconds_between, text, whole_between

FAULTS = "/_emulator/faults"
FAULT = f"{FAULTS}/{{fault}}"
LONGEST = 1e9
MOST = 10**9
LONGEST_WAIT = 600


class Control:
    """The calls about faults. `actions` are the words that calls are known by."""

    def __init__(self, faults: Faults, actions: Iterable[str]) -> None:
        self._faults = faults
        self._actions = sorted({action for action in actions if action})

    @property
    def routes(self) -> tuple[tuple[str, str, Handler], ...]:
        """Method, path, handler."""
        return (
            ("GET", "/_emulator/kinds", self.kinds),
            ("GET", FAULTS, self.find),
            ("POST", FAULTS, self.add),
            ("DELETE", FAULTS, self.clear),
            ("GET", FAULT, self.get),
            ("DELETE", FAULT, self.remove),
            ("GET", f"{FAULT}/wait", self.wait),
            ("POST", f"{FAULT}/release", self.release),
        )

    async def kinds(self, call: Call) -> Any:
        """What there is."""
        return {"kinds": {name: _about(kind) for name, kind in KINDS.items()}, "actions": self._actions}

    async def find(self, call: Call) -> Any:
        """Every fault."""
        return {"faults": [fault.described() for fault in self._faults]}

    async def add(self, call: Call) -> Any:
        """Let one begin."""
        body = await call.body()
        kind = KINDS.get(str(body.get("kind")))
        if kind is None:
            raise bad_request(f"there is no fault {_unknown(body.get('kind'), KINDS)}")
        return Reply(self._faults.add(kind, self._terms(kind, body)).described(), 201)

    async def clear(self, call: Call) -> Any:
        """Remove all."""
        return {"faults": [fault.described() for fault in self._faults.clear()]}

    async def get(self, call: Call) -> Any:
        """One."""
        return self._asked(call).described()

    async def remove(self, call: Call) -> Any:
        """Remove one."""
        fault = self._asked(call)
        self._faults.remove(fault)
        return fault.described()

    async def wait(self, call: Call) -> Any:
        """Until it has fired, or is holding."""
        fault, what = self._asked(call), call.query("until", "fired")
        if what not in ("fired", "holding"):
            raise bad_request(f"until must be fired or holding, not {what!r}")
        count, timeout = call.number("count", 1, 1, MOST), call.number("timeout", 10, 1, LONGEST_WAIT)
        try:
            await fault.reached(what, count, timeout)
        except TimeoutError:
            state = f"fired {fault.fired}, holding {fault.holding}"
            raise Refusal(
                408, f"deadline_exceeded: fault {fault.id} ({fault.kind}) is not {what} within {timeout} s: {state}"
            ) from None
        return fault.described()

    async def release(self, call: Call) -> Any:
        """Let go."""
        fault, drop = self._asked(call), (await call.body()).get("drop", False)
        if not isinstance(drop, bool):
            raise bad_request("drop must be true or false")
        fault.release(drop)
        return fault.described()

    def _asked(self, call: Call) -> Fault:
        return self._faults.get(call.request.path_params["fault"])

    def _terms(self, kind: type[Fault], body: Mapping[str, Any]) -> Terms:
        known = ("kind", *kind.scopes, *kind.limits, *kind.parameters)
        for field in body:
            if field not in known:
                raise bad_request(f"fault {kind.kind} takes no {_unknown(field, known)}")
        values = {
            name: _parsed(name, parameter.parse, body[name]) if body.get(name) is not None else parameter.default
            for name, parameter in kind.parameters.items()
        }
        scope = {
            name: _parsed(name, text, body[name]) for name in ("app", "machine", "name") if body.get(name) is not None
        }
        where = _parsed("region", regions, body["region"]) if "region" in kind.scopes and body.get("region") else ""
        return Terms(
            Scope(self._actions_of(kind, body.get("action")), **scope, regions=frozenset(where.split(",")) - {""}),
            values,
            times=_optional("times", whole_between(1, MOST), body, None if body.get("seconds") else kind.times),
            seconds=_optional("seconds", seconds_between(0.001, LONGEST), body, None),
        )

    def _actions_of(self, kind: type[Fault], asked: object) -> frozenset[str]:
        if asked is None:
            return frozenset(kind.actions)
        words = asked if isinstance(asked, list) else [asked]
        if words == [ANY]:
            return frozenset()
        for word in words:
            if word not in self._actions:
                raise bad_request(f"there is no action {_unknown(word, (ANY, *self._actions))}")
        return frozenset(words)


def _parsed(name: str, parse: Any, value: object) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise bad_request(f"{name} must be {error}") from None


def _optional(name: str, parse: Any, body: Mapping[str, Any], default: Any) -> Any:
    if name not in body:
        return default
    return None if body[name] is None else _parsed(name, parse, body[name])


def _unknown(word: object, known: Iterable[str]) -> str:
    """The word, what may have been meant, and what is known."""
    near = difflib.get_close_matches(word, known, 1) if isinstance(word, str) else []
    meant = f", did you mean {near[0]!r}?" if near else ";"
    return f"{word!r}{meant} Known: {', '.join(known)}"


def _about(kind: type[Fault]) -> dict[str, Any]:
    return {
        "says": (kind.__doc__ or "").partition("\n")[0],
        "action": list(kind.actions) or [ANY],
        "times": kind.times,
        "takes": [*kind.scopes, *kind.limits],
        "parameters": {
            name: {"default": parameter.default, "says": parameter.says} for name, parameter in kind.parameters.items()
        },
    }
