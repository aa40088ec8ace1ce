"""Which machine of an app takes a request. Pure: machines and their load in, a decision out."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from machinequeue.machines.emulator.regions import REGIONS
from machinequeue.machines.schema import Machine

DEFAULT_SOFT_LIMIT = 20
ON_THE_WAY = frozenset(("created", "creating", "starting", "restarting", "stopping", "suspending", "updating"))
AT_REST = frozenset(("stopped", "suspended"))
ALIASES = {"usa": ("us",), "na": ("us", "na")}


@dataclass(frozen=True, slots=True)
class Service:
    """The first service of a machine that speaks HTTP. `hard_limit` None means as many as come."""

    port: int
    autostart: bool = False
    autostop: str = "off"
    min_running: int = 0
    soft_limit: int = DEFAULT_SOFT_LIMIT
    hard_limit: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """From a machine's config; None when the edge has no business with it."""
        services = config.get("services")
        for entry in services if isinstance(services, list) else ():
            port = entry.get("internal_port") if isinstance(entry, Mapping) else None
            if isinstance(port, int) and entry.get("protocol", "tcp") == "tcp" and _speaks_http(entry):
                return cls._parse(entry, port)
        return None

    @classmethod
    def _parse(cls, entry: Mapping[str, Any], port: int) -> Self:
        given = entry.get("concurrency")
        limits: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        return cls(
            port=port,
            autostart=entry.get("autostart") is True,
            autostop=_autostop(entry.get("autostop")),
            min_running=_count(entry.get("min_machines_running")) or 0,
            soft_limit=_count(limits.get("soft_limit")) or _count(limits.get("hard_limit")) or DEFAULT_SOFT_LIMIT,
            hard_limit=_count(limits.get("hard_limit")),
        )


def _speaks_http(entry: Mapping[str, Any]) -> bool:
    ports = entry.get("ports")
    return any("http" in (port.get("handlers") or ()) for port in ports or () if isinstance(port, Mapping))


def _autostop(value: object) -> str:
    if value is True:
        return "stop"
    return str(value) if value in ("stop", "suspend") else "off"


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A machine that the edge may send requests to, or start."""

    id: str
    region: str
    state: str
    address: str
    group: str
    service: Service

    @property
    def may_start(self) -> bool:
        """Whether a request may start it now."""
        return self.state in AT_REST and self.service.autostart


def candidates(machines: Iterable[Machine]) -> list[Candidate]:
    """The machines with a service that speaks HTTP, without cordoned ones and those whose host cannot be asked."""
    found = []
    for machine in machines:
        service = Service.of(machine.config or {})
        if service is None or machine.cordoned or machine.host_status != "ok" or not machine.private_ip:
            continue
        found.append(
            Candidate(
                id=machine.id,
                region=machine.region,
                state=machine.state,
                address=machine.private_ip,
                group=machine.metadata.get("fly_process_group", ""),
                service=service,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Wish:
    """Where a request wants to go. `regions` and `instance` are preferences unless they are forced."""

    regions: tuple[str, ...] = ()
    region_forced: bool = False
    instance: str = ""
    instance_forced: bool = False
    not_to: frozenset[str] = frozenset()


class Verdict(Enum):
    """What to do with the machine chosen, if one was."""

    SEND = "send"
    START = "start"
    WAIT = "wait"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Choice:
    """A verdict with its machine; `also_start` is one more to start, because those that run are busy."""

    verdict: Verdict
    machine: Candidate | None = None
    also_start: Candidate | None = None


def choose(
    found: Sequence[Candidate], wish: Wish, load: Mapping[str, int], home: str, refused: Collection[str] = ()
) -> Choice:
    """The decision for one request. `load` counts requests in flight, `home` is the region of the edge, `refused`
    are machines that just refused a connection: they are asked last."""
    allowed = [each for each in found if each.id not in wish.not_to]
    if wish.instance:
        choice = _of_these([each for each in allowed if each.id == wish.instance], load, home, refused)
        if wish.instance_forced or choice.verdict in (Verdict.SEND, Verdict.START):
            return choice
        # A preferred machine that is full or away is not waited for.
        allowed = [each for each in allowed if each.id != wish.instance]
    waiting = False
    for region in wish.regions:
        choice = _of_these([each for each in allowed if is_in(each.region, region)], load, home, refused)
        if choice.verdict in (Verdict.SEND, Verdict.START):
            return choice
        waiting = waiting or choice.verdict is Verdict.WAIT
    if wish.regions and wish.region_forced:
        return Choice(Verdict.WAIT if waiting else Verdict.NOBODY)
    return _of_these(allowed, load, home, refused)


def _of_these(machines: Sequence[Candidate], load: Mapping[str, int], home: str, refused: Collection[str]) -> Choice:
    running = [each for each in machines if each.state == "started" and each.id not in refused]
    open_ones = [each for each in running if not _is_full(each, load)]
    asleep = sorted((each for each in machines if each.may_start), key=lambda each: distance(each.region, home))
    if open_ones:
        best = min(open_ones, key=lambda each: _rank(each, load, home))
        crowded = load.get(best.id, 0) >= best.service.soft_limit
        return Choice(Verdict.SEND, best, asleep[0] if crowded and asleep else None)
    if asleep:
        return Choice(Verdict.START, asleep[0])
    soon = any(each.state == "started" or (each.state in ON_THE_WAY and not _stays_down(each)) for each in machines)
    return Choice(Verdict.WAIT if soon else Verdict.NOBODY)


def _stays_down(machine: Candidate) -> bool:
    return machine.state in ("stopping", "suspending") and not machine.service.autostart


def _is_full(machine: Candidate, load: Mapping[str, int]) -> bool:
    limit = machine.service.hard_limit
    return limit is not None and load.get(machine.id, 0) >= limit


def _rank(machine: Candidate, load: Mapping[str, int], home: str) -> tuple[int, bool, float, float]:
    count = load.get(machine.id, 0)
    return distance(machine.region, home), count >= machine.service.soft_limit, count, random.random()


def is_in(region: str, wanted: str) -> bool:
    """Whether a region is the one wanted, or belongs to the alias wanted."""
    if wanted in ("any", region):
        return True
    _, group = REGIONS.get(region, ("", ""))
    return group in ALIASES.get(wanted, (wanted,))


def distance(region: str, home: str) -> int:
    """0 in the same region, 1 in the same part of the world, else 2."""
    if region == home:
        return 0
    return 1 if REGIONS.get(region, ("", "?"))[1] == REGIONS.get(home, ("", "!"))[1] else 2


def to_stop(
    found: Iterable[Candidate], load: Mapping[str, int], idle_since: Mapping[str, float], before: float
) -> list[Candidate]:
    """The machines to stop: idle since before `before`, beyond the least number of each process group, those idle
    for longest first."""
    groups: dict[str, list[Candidate]] = {}
    for each in found:
        if each.state == "started":
            groups.setdefault(each.group, []).append(each)
    chosen = []
    for members in groups.values():
        spare = len(members) - max(each.service.min_running for each in members)
        idle = [
            each
            for each in members
            if each.service.autostop != "off" and not load.get(each.id) and idle_since.get(each.id, before) < before
        ]
        chosen += sorted(idle, key=lambda each: idle_since[each.id])[: max(0, spare)]
    return chosen
