"""What travels over the Machines API, as frozen values.

Every property is optional in Fly's specification, so parsing here never raises on a missing, null or unknown field.
Nothing that can hold a secret (config, env, request payloads) appears in a repr.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

Json = Mapping[str, Any]

CPU_COUNTS = {"shared": (1, 2, 4, 6, 8), "performance": (1, 2, 4, 6, 8, 10, 12, 14, 16)}
MEMORY_MB_PER_CPU = {"shared": (256, 2048), "performance": (2048, 8192)}
MEMORY_STEP_MB = 256


def parse_time(value: object) -> datetime | None:
    """An aware datetime from RFC 3339 text or milliseconds since the epoch; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _from_milliseconds(value)
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return _from_milliseconds(int(value)) if value.isascii() and value.isdigit() else None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _from_milliseconds(value: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(value / 1000, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: object) -> int | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return int(value) if math.isfinite(value) else None


def _strings(value: object) -> dict[str, str]:
    return {key: text for key, text in _mapping(value).items() if isinstance(text, str)}


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def _rows(value: object) -> list[dict[str, Any]]:
    return [_mapping(row) for row in value] if isinstance(value, list) else []


def _iso(value: datetime | None) -> str | None:
    return value.isoformat() if value else None


@dataclass(frozen=True, slots=True)
class Guest:
    """The size of a machine: `memory_mb` is MiB in total, `cpu_kind` is "shared" or "performance"."""

    cpu_kind: str = "shared"
    cpus: int = 1
    memory_mb: int = 256

    @classmethod
    def parse(cls, data: object) -> Self:
        """A guest from a `config.guest` object; what is missing takes Fly's smallest size."""
        found = _mapping(data)
        kind = _text(found.get("cpu_kind")) or "shared"
        cpus = _whole(found.get("cpus")) or 1
        least = MEMORY_MB_PER_CPU.get(kind, MEMORY_MB_PER_CPU["shared"])[0] * cpus
        return cls(kind, cpus, _whole(found.get("memory_mb")) or least)

    def as_dict(self) -> dict[str, Any]:
        """The `config.guest` object."""
        return {"cpu_kind": self.cpu_kind, "cpus": self.cpus, "memory_mb": self.memory_mb}

    def problem(self) -> str:
        """Why Fly refuses this size, in one sentence; empty when it is a size that Fly sells."""
        if self.cpu_kind not in CPU_COUNTS:
            return f"invalid config.guest.cpu_kind, {self.cpu_kind!r} is not one of: {', '.join(CPU_COUNTS)}"
        if self.cpus not in CPU_COUNTS[self.cpu_kind]:
            allowed = ", ".join(str(count) for count in CPU_COUNTS[self.cpu_kind])
            return f"invalid config.guest.cpus, {self.cpu_kind} machines have {allowed} cpus"
        least, most = (bound * self.cpus for bound in MEMORY_MB_PER_CPU[self.cpu_kind])
        if not least <= self.memory_mb <= most:
            limit = f"minimum required {least}" if self.memory_mb < least else f"maximum allowed {most}"
            return f"invalid config.guest.memory_mb, {limit} MiB"
        if self.memory_mb % MEMORY_STEP_MB:
            return f"invalid config.guest.memory_mb, must be a multiple of {MEMORY_STEP_MB} MiB"
        return ""


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A machine asked for. `name` is unique among the app's live machines; `region` is one code, a list ("iad,us")
    or None; `config` is Fly's machine config. Times are seconds."""

    name: str
    region: str | None
    config: Json = field(repr=False)
    skip_launch: bool = False
    skip_secrets: bool = False
    skip_service_registration: bool = False
    min_secrets_version: int | None = None
    lease_ttl: int | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata asked for."""
        return _strings(self.config.get("metadata"))

    def as_dict(self) -> dict[str, Any]:
        """The body of the create call; it carries env, so it is for the wire only."""
        body: dict[str, Any] = {"name": self.name, "config": dict(self.config)}
        for key in ("region", "min_secrets_version", "lease_ttl"):
            if getattr(self, key) is not None:
                body[key] = getattr(self, key)
        for key in ("skip_launch", "skip_secrets", "skip_service_registration"):
            if getattr(self, key):
                body[key] = True
        return body


@dataclass(frozen=True, slots=True)
class ExitEvent:
    """How a machine's process ended. `exit_code` and `signal` are None when the answer did not say."""

    exit_code: int | None = None
    guest_exit_code: int | None = None
    signal: int | None = None
    guest_signal: int | None = None
    oom_killed: bool = False
    requested_stop: bool = False
    restarting: bool = False
    error: str = ""
    exited_at: datetime | None = None

    @classmethod
    def parse(cls, data: object) -> Self | None:
        """From an `exit_event` object; None when there is none."""
        if not isinstance(data, Mapping) or not data:
            return None
        return cls(
            exit_code=_whole(data.get("exit_code")),
            guest_exit_code=_whole(data.get("guest_exit_code")),
            signal=_whole(data.get("signal")),
            guest_signal=_whole(data.get("guest_signal")),
            oom_killed=data.get("oom_killed") is True,
            requested_stop=data.get("requested_stop") is True,
            restarting=data.get("restarting") is True,
            error=_text(data.get("error")),
            exited_at=parse_time(data.get("exited_at")),
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values only; `exited_at` in ISO 8601."""
        return {**asdict(self), "exited_at": _iso(self.exited_at)}


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a machine's history. `timestamp` is milliseconds since the epoch."""

    id: str
    type: str
    status: str
    source: str
    timestamp: int
    exit: ExitEvent | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def parse(cls, data: object) -> Self:
        """From an event object; the exit event may lie under `request` or `request.MonitorEvent`."""
        found = _mapping(data)
        request = _mapping(found.get("request"))
        monitor = _mapping(request.get("MonitorEvent"))
        return cls(
            id=_text(found.get("id")),
            type=_text(found.get("type")),
            status=_text(found.get("status")),
            source=_text(found.get("source")),
            timestamp=_whole(found.get("timestamp")) or 0,
            exit=ExitEvent.parse(request.get("exit_event")) or ExitEvent.parse(monitor.get("exit_event")),
            raw=found,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values only, without the raw payload."""
        values = {name: getattr(self, name) for name in ("id", "type", "status", "source", "timestamp")}
        return {**values, "exit": self.exit.as_dict() if self.exit else None}


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine as the API described it at one instant. `config` is None when its host could not be asked."""

    id: str
    name: str
    state: str
    region: str
    instance_id: str = ""
    private_ip: str = ""
    image_digest: str = ""
    config: Json | None = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    events: tuple[Event, ...] = field(default=(), repr=False)
    host_status: str = "ok"
    created_at: datetime | None = None
    updated_at: datetime | None = None
    request_id: str = ""
    nonce: str = field(default="", repr=False)
    app: str = ""
    """Only in the list of an organisation."""
    cordoned: bool = False

    @classmethod
    def parse(cls, data: object, request_id: str = "") -> Self:
        """From a Machine object; `request_id` is the `fly-request-id` of the answer that carried it."""
        found = _mapping(data)
        config = found["config"] if isinstance(found.get("config"), Mapping) else None
        known = config if config is not None else _mapping(found.get("incomplete_config"))
        return cls(
            id=_text(found.get("id")),
            name=_text(found.get("name")),
            state=_text(found.get("state")),
            region=_text(found.get("region")),
            instance_id=_text(found.get("instance_id")) or _text(found.get("version")),
            private_ip=_text(found.get("private_ip")),
            image_digest=_text(_mapping(found.get("image_ref")).get("digest")),
            config=config,
            metadata=_strings(known.get("metadata")),
            events=parse_events(found.get("events")),
            host_status=_text(found.get("host_status")) or "ok",
            created_at=parse_time(found.get("created_at")),
            updated_at=parse_time(found.get("updated_at")),
            request_id=request_id,
            nonce=_text(found.get("nonce")),
            app=_text(found.get("app_name")),
            cordoned=found.get("cordoned") is True,
        )

    @property
    def lease(self) -> Lease | None:
        """The lease that a create with `lease_ttl` took; when it ends is not said."""
        return Lease(self.nonce) if self.nonce else None

    @property
    def exit_event(self) -> ExitEvent | None:
        """The newest exit event, None while the machine has never exited."""
        return newest_exit(self.events)

    @property
    def guest(self) -> Guest | None:
        """The size in the config, None when the config is unknown."""
        return Guest.parse(self.config.get("guest")) if self.config is not None else None

    @property
    def image(self) -> str:
        """The image reference in the config, empty when unknown."""
        return _text(_mapping(self.config).get("image"))

    def as_dict(self) -> dict[str, Any]:
        """JSON values only, fit for storing: of the config only image and guest, never env, files or nonce."""
        names = ("id", "name", "state", "region", "instance_id", "private_ip", "image_digest", "host_status", "image")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        values["guest"] = self.guest.as_dict() if self.guest else None
        values["metadata"] = dict(self.metadata)
        values["events"] = [event.as_dict() for event in self.events]
        values["created_at"], values["updated_at"] = _iso(self.created_at), _iso(self.updated_at)
        values["request_id"] = self.request_id
        return values


def parse_events(data: object) -> tuple[Event, ...]:
    """Events, newest first by their timestamps, whatever the order of the answer."""
    found = [Event.parse(item) for item in data] if isinstance(data, list) else []
    return tuple(sorted(found, key=lambda event: -event.timestamp))


def newest_exit(events: Iterable[Event]) -> ExitEvent | None:
    """The exit event of the latest event that has one."""
    exits = [event for event in events if event.exit is not None]
    return max(exits, key=lambda event: event.timestamp).exit if exits else None


@dataclass(frozen=True, slots=True)
class Lease:
    """An advisory lock on a machine; whoever has the nonce may act. `expires_at` is seconds since the epoch, 0 when it
    was not said. A lease that was only looked at has no nonce."""

    nonce: str = field(repr=False)
    expires_at: int = 0
    owner: str = ""
    description: str = ""

    @classmethod
    def parse(cls, data: object) -> Self:
        """From the flat form of the specification or the form wrapped in `data` of the documentation."""
        found = _mapping(_mapping(data).get("data")) or _mapping(data)
        return cls(
            nonce=_text(found.get("nonce")),
            expires_at=_whole(found.get("expires_at")) or 0,
            owner=_text(found.get("owner")),
            description=_text(found.get("description")),
        )


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command inside a machine printed, and how it ended: `exit_code` is None when that was not said,
    `exit_signal` is 0 when no signal ended it."""

    stdout: str = field(repr=False)
    stderr: str = field(repr=False)
    exit_code: int | None
    exit_signal: int = 0

    @classmethod
    def parse(cls, data: object) -> Self:
        """From the answer of an exec, which is a success whatever became of the command."""
        found = _mapping(data)
        return cls(
            stdout=_text(found.get("stdout")),
            stderr=_text(found.get("stderr")),
            exit_code=_whole(found.get("exit_code")),
            exit_signal=_whole(found.get("exit_signal")) or 0,
        )


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log. What it says may be anything, so it is not in the repr."""

    message: str = field(repr=False)
    timestamp: datetime | None = None
    level: str = ""
    instance: str = ""
    region: str = ""
    provider: str = ""
    """Who said it: "app", "runner" (the platform) or "proxy"; empty when the answer did not say."""

    @classmethod
    def parse(cls, data: object) -> Self:
        """From one entry of `data` of the log endpoint."""
        found = _mapping(_mapping(data).get("attributes"))
        return cls(
            message=_text(found.get("message")),
            timestamp=parse_time(found.get("timestamp")),
            level=_text(found.get("level")),
            instance=_text(found.get("instance")),
            region=_text(found.get("region")),
            provider=_text(_mapping(_mapping(found.get("meta")).get("event")).get("provider")),
        )


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some lines, oldest first, and the token from which to read on."""

    lines: tuple[LogLine, ...]
    next_token: str = ""

    @classmethod
    def parse(cls, data: object) -> Self:
        """From an answer of the log endpoint."""
        found = _mapping(data)
        token = _mapping(found.get("meta")).get("next_token")
        text = str(token) if isinstance(token, int) and not isinstance(token, bool) else _text(token)
        return cls(tuple(LogLine.parse(row) for row in _rows(found.get("data"))), text)


@dataclass(frozen=True, slots=True)
class Region:
    """A region of the platform."""

    code: str
    name: str = ""
    deprecated: bool = False
    requires_paid_plan: bool = False

    @classmethod
    def parse_all(cls, data: object) -> tuple[Self, ...]:
        """From the answer about regions, which spells its list in two ways."""
        found = _mapping(data)
        return tuple(
            cls(
                code=_text(row.get("code")),
                name=_text(row.get("name")),
                deprecated=row.get("deprecated") is True,
                requires_paid_plan=row.get("requires_paid_plan") is True,
            )
            for row in _rows(found.get("Regions")) or _rows(found.get("regions"))
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """How many machines of a size a region would take now; for a `count` of 0, how many the organisation may have."""

    region: str
    count: int
    concurrency: int = 0

    @classmethod
    def parse_all(cls, data: object) -> tuple[Self, ...]:
        """From the answer about placements."""
        return tuple(
            cls(_text(row.get("region")), _whole(row.get("count")) or 0, _whole(row.get("concurrency")) or 0)
            for row in _rows(_mapping(data).get("regions"))
        )


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What one part of a token allows. No `apps` means every app of the organisation."""

    token_id: str
    org_slug: str = ""
    apps: tuple[str, ...] = ()
    user: str = ""
    restricted_to_machine: str = ""

    @classmethod
    def parse_all(cls, data: object) -> tuple[Self, ...]:
        """From the answer about the current token."""
        return tuple(
            cls(
                token_id=_text(row.get("token_id")),
                org_slug=_text(row.get("org_slug")) or _text(row.get("organization")),
                apps=_texts(row.get("apps")),
                user=_text(row.get("user")),
                restricted_to_machine=_text(row.get("restricted_to_machine")),
            )
            for row in _rows(_mapping(data).get("tokens"))
        )


@dataclass(frozen=True, slots=True)
class OrgMachines:
    """Machines of all apps of an organisation, without env or events. `error_regions` did not answer: what is there is
    missing here."""

    machines: tuple[Machine, ...]
    error_regions: tuple[str, ...] = ()
    next_cursor: str = ""

    @classmethod
    def parse(cls, data: object, request_id: str = "") -> Self:
        """From one page of the list."""
        found = _mapping(data)
        return cls(
            machines=tuple(Machine.parse(row, request_id) for row in _rows(found.get("machines"))),
            error_regions=_texts(found.get("error_regions")),
            next_cursor=_text(found.get("next_cursor")),
        )
