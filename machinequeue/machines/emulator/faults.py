"""Misbehaviour on demand: what a fault is, which calls it meets, and the list of those that are there.

The kinds are in `misbehaviours`, the HTTP calls that add and remove them in `control`.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from machinequeue.machines.emulator.answers import Refusal, bad_request
from machinequeue.machines.emulator.calls import Call, Reply
from machinequeue.machines.emulator.regions import candidates
from machinequeue.machines.emulator.world import World

ANY = "any"


@dataclass(frozen=True)
class Subject:
    """What a call is about, as far as it is known; the region of a create is the first it would like."""

    action: str
    app: str = ""
    machine: str = ""
    name: str = ""
    region: str = ""

    @classmethod
    async def of(cls, call: Call, reply: Reply | None = None) -> Subject:
        """Of a call, and of the machine in its answer."""
        app, machine_id = (call.request.path_params.get(key, "") for key in ("app", "machine"))
        if reply is not None and isinstance(reply.body, dict) and "instance_id" in reply.body:
            body = reply.body
            return cls(call.action, app, body["id"], body["name"], body["region"])
        if call.action == "create":
            return cls(call.action, app, name=await asked(call, "name"), region=(await wished_regions(call))[0])
        found = call.world.apps[app].machines.get(machine_id) if app in call.world.apps else None
        if found is None:
            return cls(call.action, app, machine_id, region=call.query("region"))
        return cls(call.action, app, machine_id, found.name, found.region)


async def asked(call: Call, field: str) -> str:
    """A text of the request's body, empty where there is none."""
    try:
        value = (await call.body()).get(field)
    except Refusal:
        return ""  # for the handler to refuse
    return value if isinstance(value, str) else ""


async def wished_regions(call: Call) -> list[str]:
    """Where a create would like its machine, in order; never empty."""
    try:
        return candidates(await asked(call, "region"), call.world.ground.region)
    except Refusal:
        return [""]


@dataclass(frozen=True)
class Scope:
    """Which calls a fault meets; what is empty does not matter. `machine` is an id or a name, `name` a pattern."""

    actions: frozenset[str] = frozenset()
    app: str = ""
    machine: str = ""
    name: str = ""
    regions: frozenset[str] = frozenset()

    def covers(self, subject: Subject) -> bool:
        """Whether a fault of this scope meets a call about the subject."""
        return (
            (not self.actions or subject.action in self.actions)
            and self.app in ("", subject.app)
            and (not self.machine or self.machine in (subject.machine, subject.name))
            and (not self.name or fnmatch.fnmatchcase(subject.name, self.name))
            and (not self.regions or subject.region in self.regions)
        )

    def described(self) -> dict[str, Any]:
        """As the control API shows it."""
        return {
            "action": sorted(self.actions) or [ANY],
            "app": self.app,
            "machine": self.machine,
            "name": self.name,
            "region": sorted(self.regions),
        }


@dataclass(frozen=True)
class Parameter:
    """`parse` turns what was sent into a value, or raises ValueError with what it must be."""

    parse: Callable[[object], Any]
    default: Any
    says: str


@dataclass(frozen=True)
class Terms:
    """How often (None: every time) and for how many seconds (None: until it is removed) a fault acts."""

    scope: Scope
    values: Mapping[str, Any]
    times: int | None = None
    seconds: float | None = None


class Fault:
    """One misbehaviour. A kind overrides what it does to a call, or what it does when it begins and ends."""

    kind: ClassVar[str]
    actions: ClassVar[tuple[str, ...]] = ()
    """Those it meets when none is named; empty for any."""
    times: ClassVar[int | None] = None
    """How often it acts when nothing is said; None for every time."""
    scopes: ClassVar[tuple[str, ...]] = ("action", "app", "machine", "name", "region")
    """By which of them it can be narrowed down."""
    limits: ClassVar[tuple[str, ...]] = ("times", "seconds")
    """By which of them its end can be set."""
    parameters: ClassVar[Mapping[str, Parameter]] = {}
    meets_calls: ClassVar[bool] = True

    def __init__(self, number: int, world: World, terms: Terms) -> None:
        self.id = f"f{number}"
        self.world = world
        self.scope = terms.scope
        self.values = terms.values
        self.left = terms.times
        self.seconds = terms.seconds
        self.active = True
        self.fired = 0
        self.holding = 0
        self.last: Subject | None = None
        self._changed = asyncio.Event()

    # -- what a kind says -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take effect. Raises a Refusal when it cannot."""

    def end(self) -> None:
        """Undo what lasts. Told once, when it is removed or its seconds are over."""

    async def arriving(self, call: Call) -> Reply | None:
        """Before the token is looked at; a reply is the answer."""
        del call
        return None

    async def before(self, call: Call, subject: Subject) -> Reply | None:
        """Before the call is carried out; a reply, or a Refusal that is raised, is the answer."""
        del call, subject
        return None

    def carrying_out(self, call: Call) -> None:
        """At the very moment before the call is carried out, which nothing prevents any more."""

    async def after(self, call: Call, subject: Subject, reply: Reply) -> Reply:
        """After the call succeeded; what is returned is the answer."""
        del call, subject
        return reply

    def refused(self, call: Call) -> None:
        """The call was refused by its handler."""

    def release(self, drop: bool) -> None:
        """Let go of what it holds; with `drop` the connections end without an answer."""
        raise bad_request(f"fault {self.id} is of kind {self.kind}, which holds nothing")

    def covers(self, subject: Subject) -> bool:
        """Whether it meets a call about the subject."""
        return self.scope.covers(subject)

    # -- what every kind does -------------------------------------------------------------------------------------

    def fire(self, subject: Subject | None) -> None:
        """Count that it acts now, and write it down."""
        self.fired += 1
        self.last = subject or self.last
        if self.left is not None:
            self.left -= 1
            self.active = self.left > 0
        about = {} if subject is None else {key: value for key, value in vars(subject).items() if value}
        self.world.ground.journal.write("fault", fault=self.id, type=self.kind, **about)
        self.tell()

    def tell(self) -> None:
        """Wake who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def reached(self, what: str, count: int, timeout_seconds: float) -> None:
        """Wait until `fired` or `holding` is at least `count`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while getattr(self, what) < count:
                await self._changed.wait()

    def described(self) -> dict[str, Any]:
        """As the control API shows it."""
        return {
            "id": self.id,
            "kind": self.kind,
            **self.scope.described(),
            **self.values,
            "times_left": self.left,
            "seconds": self.seconds,
            "active": self.active,
            "fired": self.fired,
            "holding": self.holding,
            "last": None if self.last is None else vars(self.last),
        }


class Faults:
    """The faults that were added and not removed, in that order; true while one may meet a call."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._all: dict[str, Fault] = {}
        self._meeting: list[Fault] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._meeting)

    def __iter__(self) -> Iterator[Fault]:
        return iter([*self._all.values()])

    def add(self, kind: type[Fault], terms: Terms) -> Fault:
        """Let a fault begin. Raises a Refusal when it cannot."""
        fault = kind(self._count + 1, self.world, terms)
        fault.begin()
        self._count += 1
        self._all[fault.id] = fault
        if fault.meets_calls:
            self._meeting.append(fault)
        if fault.seconds is not None:
            loop = asyncio.get_running_loop()
            self._timers[fault.id] = loop.call_later(fault.seconds, self._finish, fault)
        return fault

    def get(self, fault_id: str) -> Fault:
        """The fault. Raises a Refusal when there is none."""
        found = self._all.get(fault_id)
        if found is None:
            raise Refusal(404, f"not_found: there is no fault {fault_id!r}")
        return found

    def remove(self, fault: Fault) -> None:
        """End the fault and forget it."""
        self._finish(fault)
        self._all.pop(fault.id, None)

    def clear(self) -> list[Fault]:
        """Remove all; returns them."""
        removed = [*self._all.values()]
        for fault in removed:
            self.remove(fault)
        return removed

    def close(self) -> None:
        """Let go of the calls that are held: the emulator ends, and they are not to be carried out any more."""
        for fault in self:
            if fault.holding:
                fault.release(drop=True)

    def _finish(self, fault: Fault) -> None:
        timer = self._timers.pop(fault.id, None)
        if timer is not None:
            timer.cancel()
        if fault in self._meeting:
            self._meeting.remove(fault)
        if fault.seconds is not None and timer is None:
            return  # its seconds were over before
        fault.active = False
        fault.end()
        fault.tell()

    # -- what a call goes through ---------------------------------------------------------------------------------

    async def arriving(self, call: Call) -> Reply | None:
        """What is answered before the token is looked at, None for nothing."""
        for fault in self._awake():
            reply = await fault.arriving(call)
            if reply is not None:
                return reply
        return None

    async def before(self, call: Call) -> Reply | None:
        """What is answered in the place of the call, None for nothing."""
        met = []
        for fault in self._awake():
            subject = await Subject.of(call)  # each time anew: a fault may have changed where a create goes
            if fault.active and fault.covers(subject):
                met.append(fault)
                reply = await fault.before(call, subject)
                if reply is not None:
                    return reply
        for fault in met:
            if fault.active:
                fault.carrying_out(call)
        return None

    async def after(self, call: Call, reply: Reply) -> Reply:
        """What is answered after a success."""
        for fault in self._awake():
            subject = await Subject.of(call, reply)
            if fault.active and fault.covers(subject):
                reply = await fault.after(call, subject, reply)
        return reply

    def refused(self, call: Call) -> None:
        """The handler refused the call."""
        for fault in self._awake():
            fault.refused(call)

    def _awake(self) -> list[Fault]:
        self._meeting = [fault for fault in self._meeting if fault.active]
        return [*self._meeting]
