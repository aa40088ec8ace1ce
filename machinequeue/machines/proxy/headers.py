"""Which headers pass, which the edge takes off, which it puts on. Pure.

A header is a pair of bytes, its name in lower case, as it comes from the wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from machinequeue.machines.proxy.replay import Transform

Header = tuple[bytes, bytes]
Headers = list[Header]

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
# The only ones with this prefix that a client may set: every other is the edge's word, or an app's word to the edge.
CLIENT_MAY_SET = frozenset(
    b"fly-prefer-region fly-force-region fly-prefer-instance-id fly-force-instance-id fly-replay-cache-control".split()
)
REPLACED = frozenset((b"expect", b"x-forwarded-for", b"x-forwarded-port", b"x-forwarded-proto", b"x-forwarded-ssl"))
FRAMING = frozenset((*HOP_BY_HOP, b"content-length", b"expect"))
OWN_ANSWER = frozenset((b"server", b"fly-request-id"))
VIA = b"1.1 fly.io"


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a request reached the edge. Addresses and ports are text."""

    client: str
    address: str
    port: str
    region: str
    request_id: str


def first(headers: Iterable[Header], name: bytes) -> str:
    """The first value of that name, empty when there is none."""
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def joined(headers: Iterable[Header], name: bytes) -> str:
    """All values of that name as one list."""
    return ", ".join(value.decode("latin-1") for key, value in headers if key == name)


def for_machine(headers: Headers, arrival: Arrival, upgrade: bool) -> Headers:
    """The client's headers as a machine may see them, with what the edge knows."""
    dropped = HOP_BY_HOP | REPLACED | _named_by_connection(headers)
    passed = [(key, value) for key, value in headers if key not in dropped and not _is_forged(key)]
    if upgrade:
        passed += [(b"connection", b"Upgrade"), (b"upgrade", first(headers, b"upgrade").encode("latin-1"))]
    elif any(key == b"transfer-encoding" for key, _ in headers):
        passed.append((b"transfer-encoding", b"chunked"))
    came_by = [joined(headers, b"x-forwarded-for"), arrival.client, arrival.address]
    known = {
        b"x-forwarded-for": ", ".join(filter(None, came_by)),
        b"x-forwarded-proto": "http",
        b"x-forwarded-port": first(headers, b"x-forwarded-port") or arrival.port,
        b"x-forwarded-ssl": "off",
        b"fly-client-ip": arrival.client,
        b"fly-forwarded-port": arrival.port,
        b"fly-region": arrival.region,
        b"fly-request-id": arrival.request_id,
    }
    return [*_with_via(passed), *((key, value.encode("latin-1")) for key, value in known.items())]


def for_client(headers: Headers, request_id: str) -> Headers:
    """A machine's headers as a client may see them: orders to the edge stay here."""
    dropped = HOP_BY_HOP | OWN_ANSWER | _named_by_connection(headers)
    passed = [(key, value) for key, value in headers if key not in dropped and not key.startswith(b"fly-replay")]
    return [*_with_via(passed), (b"server", b"Fly/local"), (b"fly-request-id", request_id.encode())]


def transformed(headers: Headers, transform: Transform) -> Headers:
    """As an app asked in a replay. What frames the body, and what only the edge may say, cannot be changed."""
    wanted = [(name.encode(), value.encode()) for name, value in transform.set_headers]
    wanted = [pair for pair in wanted if _may_change(pair[0])]
    gone = {name.encode("latin-1", "replace") for name in transform.delete_headers} | {name for name, _ in wanted}
    kept = [(key, value) for key, value in headers if key not in gone or not _may_change(key)]
    return kept + wanted


def _may_change(name: bytes) -> bool:
    return name not in FRAMING and not _is_forged(name)


def _is_forged(name: bytes) -> bool:
    return name.startswith(b"fly-") and name not in CLIENT_MAY_SET


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    names = (name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b","))
    return frozenset(names)


def _with_via(headers: Headers) -> Headers:
    before = [value for key, value in headers if key == b"via"]
    return [*((key, value) for key, value in headers if key != b"via"), (b"via", b", ".join([*before, VIA]))]
