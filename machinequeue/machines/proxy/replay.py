"""What an app asks for with `fly-replay`, and what the edge tells the next machine about it. Pure.

See fly.io/docs/networking/dynamic-request-routing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

JSON_TYPE = "application/vnd.fly.replay+json"
FALLBACKS = ("force_self", "prefer_self")
BIGGEST_ORDER = 65_536

_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|µs|ms|s|m|h)")
_FIELD = re.compile(r'(?:[^;"]|"[^"]*")+')
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TARGET = re.compile(r"/[\x21-\x7e]*")


class BadReplay(ValueError):
    """The order cannot be followed; the message says why, for the app's developer."""


@dataclass(frozen=True, slots=True)
class Transform:
    """Changes to a request that is replayed: its path with the query, headers without, headers with."""

    path: str = ""
    delete_headers: tuple[str, ...] = ()
    set_headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """One order. `timeout` is seconds, None when it names none; texts are empty when they are not given."""

    instance: str = ""
    prefer_instance: str = ""
    regions: tuple[str, ...] = ()
    app: str = ""
    state: str = ""
    elsewhere: bool = False
    timeout: float | None = None
    fallback: str = ""
    transform: Transform = Transform()

    @classmethod
    def from_header(cls, text: str) -> Self:
        """Of a header: `key=value` pairs between semicolons, in any order, quoted or not. Raises BadReplay."""
        fields: dict[str, Any] = {}
        for part in _FIELD.findall(text):
            key, _, value = part.partition("=")
            quoted = value.strip().startswith('"')
            if key.strip().lower() == "region" and "," in value and not quoted:
                raise BadReplay(f'a list of regions must be quoted: region="{value.strip()}"')
            fields[key.strip().lower()] = value.strip().strip('"')
        return cls._of(fields)

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Of an answer whose content type is JSON_TYPE. Raises BadReplay."""
        try:
            fields = json.loads(body)
        except ValueError:
            raise BadReplay("the body is not JSON") from None
        if not isinstance(fields, dict):
            raise BadReplay("the body is not a JSON object")
        return cls._of(fields)

    @classmethod
    def _of(cls, fields: Mapping[str, Any]) -> Self:
        fallback = _text(fields, "fallback")
        if fallback and fallback not in FALLBACKS:
            raise BadReplay(f"fallback is {' or '.join(FALLBACKS)}, not {fallback!r}")
        timeout = _text(fields, "timeout")
        return cls(
            instance=_text(fields, "instance"),
            prefer_instance=_text(fields, "prefer_instance"),
            regions=region_list(_text(fields, "region")),
            app=_text(fields, "app"),
            state=_text(fields, "state"),
            elsewhere=str(fields.get("elsewhere", "")).lower() == "true",
            timeout=duration(timeout) if timeout else None,
            fallback=fallback,
            transform=_transform(fields.get("transform")),
        )


def region_list(text: str) -> tuple[str, ...]:
    """Codes and aliases between commas, in the order of preference."""
    return tuple(code.strip().lower() for code in text.split(",") if code.strip())


def duration(text: str) -> float:
    """Seconds of "10s", "800ms", "1m30s". Raises BadReplay."""
    if not text or _DURATION_PART.sub("", text):
        raise BadReplay(f"timeout is a duration such as 10s or 800ms, not {text!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def source(instance: str, region: str, microseconds: int, state: str) -> str:
    """The value of `fly-replay-src`: who sent the order, where from, when, with which state."""
    fields = {"instance": instance, "region": region, "t": str(microseconds), "state": state}
    return _joined(fields)


def failure(replay: Replay, *, app: str, replay_source: str, reason: str, elapsed_ms: int) -> str:
    """The value of `fly-replay-failed`: what was aimed at, and why it was not reached."""
    fields = {
        "instance": replay.instance or replay.prefer_instance,
        "app": app,
        "region": ",".join(replay.regions),
        "replay_source": replay_source,
        "reason": reason,
        "elapsed_ms": str(elapsed_ms),
    }
    return _joined(fields)


def _joined(fields: Mapping[str, str]) -> str:
    return ";".join(f"{key}={value}" for key, value in fields.items() if value)


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or not value.isprintable():
        raise BadReplay(f"{key} must be text on one line")
    return value.strip()


def _transform(value: object) -> Transform:
    if value is None:
        return Transform()
    if not isinstance(value, Mapping):
        raise BadReplay("transform must be an object")
    path = _text(value, "path")
    if path and not _TARGET.fullmatch(path):
        raise BadReplay("transform.path must begin with / and have no spaces")
    deleted, wanted = value.get("delete_headers") or (), value.get("set_headers") or ()
    if not isinstance(deleted, list | tuple) or not all(isinstance(name, str) for name in deleted):
        raise BadReplay("transform.delete_headers must be a list of names")
    if not isinstance(wanted, list | tuple):
        raise BadReplay("transform.set_headers must be a list of objects with name and value")
    return Transform(path, tuple(name.lower() for name in deleted), tuple(_pair(each) for each in wanted))


def _pair(value: object) -> tuple[str, str]:
    if not isinstance(value, Mapping) or not _HEADER_NAME.fullmatch(str(value.get("name", ""))):
        raise BadReplay("transform.set_headers must be a list of objects with name and value")
    text = _text(value, "value")
    if not text.isascii():
        raise BadReplay(f"transform.set_headers: {value['name']} must be ASCII")
    return str(value["name"]).lower(), text
