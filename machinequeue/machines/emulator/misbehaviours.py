"""The kinds of faults. The first line of each says what it does; `GET /_emulator/kinds` shows it."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from machinequeue.machines.emulator import names
from machinequeue.machines.emulator.answers import Refusal, app_not_found, machine_not_found
from machinequeue.machines.emulator.calls import Call, Reply
from machinequeue.machines.emulator.delays import LONGEST_SECONDS
from machinequeue.machines.emulator.faults import Fault, Parameter, Subject, asked, wished_regions
from machinequeue.machines.emulator.machine import Machine
from machinequeue.machines.emulator.regions import REGIONS
from machinequeue.machines.emulator.world import App

LISTS = ("list", "org-list")
READS_OF_ONE = ("get", "wait", "events", "metadata-get")
BOOTS = ("create", "start")  # as actions are named, and as delays are


# -- what is sent, as values ------------------------------------------------------------------------------------------


def one_of(*words: str) -> Callable[[object], str]:
    """A word of a list."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"one of: {', '.join(words)}")
        return str(value)

    return parse


def seconds_between(least: float, most: float) -> Callable[[object], float]:
    """A number of seconds."""

    def parse(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a number of seconds from {least:g} to {most:g}")
        return float(value)

    return parse


def whole_between(least: int, most: int) -> Callable[[object], int]:
    """A whole number."""

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return parse


def text(value: object) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def regions(value: object) -> str:
    """Codes with commas between them."""
    codes = text(value).split(",") if value else []
    if not all(code.strip() in REGIONS for code in codes):
        raise ValueError(f"codes of regions with commas between them, of: {', '.join(sorted(REGIONS))}")
    return ",".join(code.strip() for code in codes)


WHEN = one_of("before", "after")
BEFORE = Parameter(WHEN, "before", "before or after the call is carried out; after means after a success")
AFTER = dataclasses.replace(BEFORE, default="after")
DELAY = Parameter(seconds_between(0, LONGEST_SECONDS), 2.0, "seconds")
RETRY_AFTER = Parameter(seconds_between(0, LONGEST_SECONDS), None, "seconds for the header Retry-After; none without")
DROPPED = Reply(None, 0, delivery="lost")
SHAPE = Parameter(one_of("json", "html", "plain", "empty"), "json", "of the body: json, html, plain, empty")


# -- answers ----------------------------------------------------------------------------------------------------------

WORDS = {
    401: "Authenticate: token validation error",
    403: "permission_denied: the token does not cover this app",
    408: "deadline_exceeded: request timed out",
    429: "resource_exhausted: rate limit exceeded",
    500: "internal: server error",
    502: "Bad Gateway",
    503: "unavailable: service unavailable",
    504: "deadline_exceeded: upstream request timed out",
}


class Answering(Fault):
    """Answers something of its own."""

    status: ClassVar[int] = 500

    def reply(self) -> Reply:
        """What is answered."""
        values = self.values
        status = int(values.get("status", self.status))
        words = values.get("text") or WORDS.get(status, f"unknown: answered {status}")
        retry_after = values.get("retry_after")
        headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
        shape = values.get("body", "json")
        if shape == "json":
            body = {"error": words, **({"status": values["code"]} if values.get("code") else {})}
            return Reply(body, status, headers)
        if shape == "empty":
            return Reply(None, status, headers)
        page = f"<html><head><title>{status}</title></head><body><h1>{words}</h1></body></html>\n"
        if shape == "html":
            return Reply(page, status, headers, "text/html")
        return Reply(f"{words}\n", status, headers, "text/plain")

    async def before(self, call: Call, subject: Subject) -> Reply | None:
        if self.values.get("when", "before") == "after":
            return None
        self.fire(subject)
        return self.reply()

    async def after(self, call: Call, subject: Subject, reply: Reply) -> Reply:
        if self.values.get("when", "before") == "before":
            return reply
        self.fire(subject)
        return self.reply()


class RateLimited(Answering):
    """Answers 429 as Fly does, with or without Retry-After."""

    kind = "rate_limited"
    status = 429
    parameters = {"retry_after": RETRY_AFTER}


class Unauthorized(Answering):
    """Answers 401: the token is not valid any more."""

    kind = "unauthorized"
    status = 401


class Forbidden(Answering):
    """Answers 403: the token does not cover the app."""

    kind = "forbidden"
    status = 403


class ServerError(Answering):
    """Answers 5xx, before or after the call is carried out."""

    kind = "server_error"
    parameters = {
        "status": Parameter(whole_between(500, 599), 500, "500 to 599"),
        "body": SHAPE,
        "when": BEFORE,
        "retry_after": RETRY_AFTER,
    }


class TimedOut(Answering):
    """Answers 408 though the call was carried out."""

    kind = "timed_out"
    status = 408
    times = 1
    parameters = {"when": AFTER, "body": SHAPE}


class Answer(Answering):
    """Answers whatever is asked for: `status`, `text`, the body's `code`."""

    kind = "answer"
    parameters = {
        "status": Parameter(whole_between(200, 599), 500, "of HTTP, 200 to 599"),
        "text": Parameter(text, "", "the sentence of the body"),
        "code": Parameter(text, "", "the `status` of a JSON body"),
        "body": SHAPE,
        "when": BEFORE,
        "retry_after": RETRY_AFTER,
    }


# shape: status, sentence, the body's `status`
CAPACITY: Mapping[str, tuple[int, str, str]] = {
    "candidate": (422, "could not find a candidate host", "insufficient_capacity"),
    "volume": (412, "failed_precondition: the volume's host is full", "volume_placement_capacity"),
    "memory": (409, "aborted: insufficient memory available to fulfill request", ""),
    "cpus": (409, "aborted: insufficient CPUs available to fulfill request", ""),
    "resources": (409, "insufficient resources available to fulfill request", ""),
    "reserve": (409, "could not reserve resource for machine: insufficient memory", ""),
    "no_capacity": (409, "unavailable: {region}: no capacity", ""),
    "no_capacity_400": (400, "unavailable: {region}: no capacity", ""),
    "governor": (409, "governor policy blocked start", ""),
    "deploys_disabled": (409, "deploys to this host are temporarily disabled", ""),
    "quota": (403, "would use 262144 MB, which is over the allowed quota", ""),
    "machine_limit": (422, "Your organization has reached its machine limit. Please contact billing@fly.io", ""),
}


class Capacity(Fault):
    """There is no room, everywhere or in some regions; a create that lists others too lands in the next of them."""

    kind = "capacity"
    actions = ("create", "start", "update")
    scopes = ("action", "app", "machine", "name")
    parameters = {
        "shape": Parameter(one_of(*CAPACITY), "candidate", f"how Fly says it: {', '.join(CAPACITY)}"),
        "region": Parameter(regions, "", "the full ones, with commas between them; empty: all are full"),
    }

    async def before(self, call: Call, subject: Subject) -> Reply | None:
        full = set(self.values["region"].split(",")) - {""}
        wished = await wished_regions(call) if call.action == "create" else [subject.region]
        if full and wished[0] not in full:
            return None
        self.fire(subject)
        others = [region for region in wished if region not in full] if full else []
        if others:
            (await call.body())["region"] = ",".join(others)
            return None
        status, sentence, code = CAPACITY[self.values["shape"]]
        raise Refusal(status, sentence.format(region=subject.region), code)


# -- the connection and the time --------------------------------------------------------------------------------------


class Reset(Fault):
    """The connection is reset, before or after the call is carried out."""

    kind = "reset"
    times = 1
    parameters = {"when": BEFORE}
    delivery: ClassVar[str] = "reset"

    async def before(self, call: Call, subject: Subject) -> Reply | None:
        if self.values["when"] == "after":
            return None
        self.fire(subject)
        return Reply(None, 0, delivery=self.delivery)

    async def after(self, call: Call, subject: Subject, reply: Reply) -> Reply:
        if self.values["when"] == "before":
            return reply
        self.fire(subject)
        return dataclasses.replace(reply, delivery=self.delivery)


class LoseAnswer(Reset):
    """The call is carried out, then the connection ends without an answer."""

    kind = "lose_answer"
    parameters = {"when": AFTER}
    delivery = "lost"


class BrokenBody(Fault):
    """The call is carried out, and half of the body arrives."""

    kind = "broken_body"
    times = 1
    parameters = {
        "shape": Parameter(one_of("cut", "garbled"), "cut", "cut: the connection ends; garbled: as if it were all")
    }

    async def after(self, call: Call, subject: Subject, reply: Reply) -> Reply:
        if reply.body is None:
            return reply
        self.fire(subject)
        return dataclasses.replace(reply, delivery=self.values["shape"])


class Holding(Fault):
    """Lets calls stand still until they are released."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._gates: list[asyncio.Future[bool]] = []

    async def hold(self, call: Call, subject: Subject, seconds: float | None = None) -> bool:
        """Stand still, for some seconds at most; whether the answer is to be dropped."""
        await asked(call, "")  # what was sent is here, though the client may be gone when it is carried out
        gate: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._gates.append(gate)
        self.holding += 1
        self.fire(subject)
        try:
            return await asyncio.wait_for(gate, seconds)
        except TimeoutError:
            return False
        finally:
            self._gates.remove(gate)
            self.holding -= 1
            self.tell()

    def release(self, drop: bool) -> None:
        """Let the calls that stand still go on; with `drop` their connections end without an answer instead."""
        for gate in self._gates:
            if not gate.done():
                gate.set_result(drop)

    def end(self) -> None:
        self.release(drop=False)


class Slow(Holding):
    """The answer takes `delay` seconds more, before or after the call is carried out."""

    kind = "slow"
    parameters = {"delay": DELAY, "when": BEFORE}

    async def before(self, call: Call, subject: Subject) -> Reply | None:
        if self.values["when"] == "before":
            return DROPPED if await self.hold(call, subject, self.values["delay"]) else None
        return None

    async def after(self, call: Call, subject: Subject, reply: Reply) -> Reply:
        if self.values["when"] == "after":
            lost = await self.hold(call, subject, self.values["delay"])
            return dataclasses.replace(reply, delivery="lost") if lost else reply
        return reply


class Hold(Holding):
    """The call stands still, before or after it is carried out, until it is released."""

    kind = "hold"
    times = 1
    parameters = {"when": AFTER}

    async def before(self, call: Call, subject: Subject) -> Reply | None:
        if self.values["when"] == "before" and await self.hold(call, subject):
            return DROPPED
        return None

    async def after(self, call: Call, subject: Subject, reply: Reply) -> Reply:
        if self.values["when"] == "after" and await self.hold(call, subject):
            return dataclasses.replace(reply, delivery="lost")
        return reply


class Freeze(Holding):
    """The API does not answer at all; released, it carries out what was asked meanwhile."""

    kind = "freeze"
    scopes = ()

    async def arriving(self, call: Call) -> Reply | None:
        where = call.request.path_params
        subject = Subject(call.action, where.get("app", ""), where.get("machine", ""))
        return DROPPED if await self.hold(call, subject) else None

    def release(self, drop: bool) -> None:
        self.active = False
        super().release(drop)


# -- what is seen -----------------------------------------------------------------------------------------------------


class EmptyList(Fault):
    """Lists of machines are empty."""

    kind = "empty_list"
    actions = LISTS
    scopes = ("action", "app")

    async def before(self, call: Call, subject: Subject) -> Reply | None:
        self.fire(subject)
        call.shown = {name: _as_it_is(app, []) for name, app in self.world.apps.items()}
        return None


class StaleList(Fault):
    """Lists of machines are as they were when this fault was added."""

    kind = "stale_list"
    actions = LISTS
    scopes = ("action", "app")

    def begin(self) -> None:
        self._then = {name: _as_it_is(app, app.machines.values()) for name, app in self.world.apps.items()}

    async def before(self, call: Call, subject: Subject) -> Reply | None:
        self.fire(subject)
        new = {name: _as_it_is(app, []) for name, app in self.world.apps.items() if name not in self._then}
        call.shown = {**self._then, **new}
        return None


def _as_it_is(app: App, machines: Any) -> App:
    shown = copy.copy(app)
    shown.machines = {machine.id: _photographed(machine) for machine in machines}
    return shown


def _photographed(machine: Machine) -> Machine:
    shown = copy.copy(machine)
    shown.config = copy.deepcopy(machine.config)
    shown.history = machine.history.copy()
    return shown


class NotVisible(Fault):
    """Machines that are created from now on are not found by their id."""

    kind = "not_visible"
    actions = READS_OF_ONE
    scopes = ("action", "app", "machine", "name")
    parameters = {
        "age": Parameter(
            seconds_between(0, LONGEST_SECONDS), None, "seconds after its creation; none: as long as this fault lasts"
        )
    }

    def begin(self) -> None:
        self._known = {machine_id for app in self.world.apps.values() for machine_id in app.machines}

    async def before(self, call: Call, subject: Subject) -> Reply | None:
        machines = self.world.apps[subject.app].machines if subject.app in self.world.apps else {}
        if subject.machine not in machines or subject.machine in self._known:
            return None
        age, created_ms = self.values["age"], machines[subject.machine].created_ms
        if age is not None and names.now_ms() - created_ms >= age * 1000:
            return None
        self.fire(subject)
        raise machine_not_found()


class RegionsKey(Fault):
    """Regions are listed under one key alone, as measured ("Regions") or as specified ("regions")."""

    kind = "regions_key"
    actions = ("regions",)
    scopes = ()
    parameters = {"key": Parameter(one_of("Regions", "regions"), "Regions", "Regions or regions")}

    async def after(self, call: Call, subject: Subject, reply: Reply) -> Reply:
        self.fire(subject)
        capital = self.values["key"] == "Regions"
        body = {key: value for key, value in reply.body.items() if key[0].isupper() == capital}
        return dataclasses.replace(reply, body=body)


class ManifestUnknown(Fault):
    """The registry does not know an image, or any."""

    kind = "manifest_unknown"
    scopes = ()
    parameters = {"image": Parameter(text, "", "the reference; empty for all")}
    meets_calls = False

    def begin(self) -> None:
        self.world.ground.images.withheld.append(self._withholds)

    def end(self) -> None:
        self.world.ground.images.withheld.remove(self._withholds)

    def _withholds(self, reference: str) -> bool:
        hit = self.active and self.values["image"] in ("", reference)
        if hit:
            self.fire(None)
        return hit


class Clock(Fault):
    """Every time that the emulator states is off by `offset` seconds; its journal is not."""

    kind = "clock"
    scopes = ()
    limits = ("seconds",)
    parameters = {"offset": Parameter(seconds_between(-1e9, 1e9), 3600.0, "seconds, negative for the past")}
    meets_calls = False

    def begin(self) -> None:
        names.set_clock(names.clock_offset() + self.values["offset"])
        self.fire(None)

    def end(self) -> None:
        names.set_clock(names.clock_offset() - self.values["offset"])


# -- machines ---------------------------------------------------------------------------------------------------------


class LateBoot(Fault):
    """A machine stays in `created` (a start: in `starting`) for `delay` seconds, then boots late."""

    kind = "late_boot"
    actions = ("create",)
    parameters = {"delay": dataclasses.replace(DELAY, default=30.0)}

    def carrying_out(self, call: Call) -> None:
        if call.action in BOOTS and call.delayed_by is None:
            # Nothing else runs between this and the boot, so no other boot can draw it.
            self.world.ground.delays.hold(call.action, self.values["delay"])
            call.delayed_by = self

    async def after(self, call: Call, subject: Subject, reply: Reply) -> Reply:
        if call.delayed_by is self:
            self.fire(subject)
        return reply

    def refused(self, call: Call) -> None:
        if call.delayed_by is self:
            self.world.ground.delays.draw(call.action)


class Befalling(Fault):
    """Happens to one machine, at once."""

    scopes = ("app", "machine")
    limits: ClassVar[tuple[str, ...]] = ()
    times = 1
    meets_calls = False

    def begin(self) -> None:
        machine = self.sufferer()
        self.befall(machine)
        self.fire(Subject(self.kind, self.scope.app, machine.id, machine.name, machine.region))

    def sufferer(self) -> Machine:
        """The machine of the scope, by id or by the name of a living one."""
        if not self.scope.machine:
            raise Refusal(400, f"invalid_argument: fault {self.kind} needs machine, an id or a name")
        if self.scope.app and self.scope.app not in self.world.apps:
            raise app_not_found()
        for app in self.world.apps.values():
            if self.scope.app in ("", app.name):
                by_name = [machine for machine in app.living() if machine.name == self.scope.machine]
                found = app.machines.get(self.scope.machine) or (by_name[0] if by_name else None)
                if found is not None:
                    return found
        raise machine_not_found()

    def befall(self, machine: Machine) -> None:
        """Do it. Raises a Refusal when it cannot happen now."""
        raise NotImplementedError


class Vanish(Befalling):
    """The host of a machine is lost, until this fault is removed."""

    kind = "vanish"
    limits = ("seconds",)

    def befall(self, machine: Machine) -> None:
        machine.vanish()
        self._machine = machine

    def end(self) -> None:
        try:
            self._machine.return_host()
        except Refusal:
            pass  # it was destroyed, or its host is back already


class ReturnHost(Befalling):
    """The lost host of a machine is back."""

    kind = "return_host"

    def befall(self, machine: Machine) -> None:
        machine.return_host()


class Migrate(Befalling):
    """A machine moves to another host."""

    kind = "migrate"

    def befall(self, machine: Machine) -> None:
        machine.migrate()


class OutOfMemory(Befalling):
    """The biggest process of a machine is killed for want of memory."""

    kind = "out_of_memory"

    def befall(self, machine: Machine) -> None:
        machine.run_out_of_memory()


KINDS: Mapping[str, type[Fault]] = {
    each.kind: each
    for each in (
        Capacity,
        RateLimited,
        Unauthorized,
        Forbidden,
        ServerError,
        TimedOut,
        Answer,
        Reset,
        LoseAnswer,
        BrokenBody,
        Slow,
        Hold,
        Freeze,
        EmptyList,
        StaleList,
        NotVisible,
        RegionsKey,
        ManifestUnknown,
        Clock,
        LateBoot,
        Vanish,
        ReturnHost,
        Migrate,
        OutOfMemory,
    )
}
