"""The lease of one machine: an advisory lock that its holder proves with a nonce."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from machinequeue.machines.emulator import names
from machinequeue.machines.emulator.answers import bad_request, lease_held, lease_not_found

OWNER = "emulator@tokens.fly.io"
USUAL_SECONDS = 30
LONGEST_SECONDS = 86_400
LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Lease:
    """`expires_at` is in seconds since the epoch, `deadline` on the monotonic clock; `version` the machine's."""

    nonce: str = field(repr=False)
    description: str
    expires_at: int
    deadline: float
    version: str

    def stripped(self) -> dict[str, Any]:
        """What others may know."""
        return {"description": self.description, "expires_at": self.expires_at, "owner": OWNER}

    def described(self) -> dict[str, Any]:
        """The answer of the lease calls: flat as specified, and wrapped as Fly's documents and clients have it."""
        flat = {**self.stripped(), "nonce": self.nonce, "version": self.version}
        return {**flat, "status": "success", "data": flat}


class Leases:
    """At most one lease at a time."""

    def __init__(self) -> None:
        self._lease: Lease | None = None
        self._ended = asyncio.Event()

    @property
    def current(self) -> Lease | None:
        """The lease that holds now."""
        if self._lease is not None and self._lease.deadline <= time.monotonic():
            self.end()
        return self._lease

    def acquire(self, ttl: int, description: str, version: str, nonce: str = "") -> Lease:
        """The present lease for longer when this is its nonce, else a new one. Raises a Refusal when another holds."""
        self.demand(nonce)
        before = self.current
        self._lease = Lease(
            nonce=before.nonce if before else secrets.token_hex(6),
            description=description or (before.description if before else ""),
            expires_at=int(time.time()) + ttl,
            deadline=time.monotonic() + ttl,
            version=version,
        )
        return self._lease

    def release(self, nonce: str) -> None:
        """Give the lease back. Raises a Refusal when there is none, or another's."""
        if self.current is None:
            raise lease_not_found()
        self.demand(nonce)
        self.end()

    def demand(self, nonce: str) -> None:
        """Raise the refusal unless there is no lease or this is its nonce."""
        lease = self.current
        if lease is not None and not secrets.compare_digest(lease.nonce.encode(), nonce.encode()):
            raise lease_held(OWNER, names.rfc3339(lease.expires_at * 1000))

    async def free(self, nonce: str, given_up: Callable[[], Awaitable[bool]]) -> bool:
        """Wait until there is no lease or this is its nonce; False when the caller gave up first."""
        while True:
            lease = self.current
            if lease is None or secrets.compare_digest(lease.nonce.encode(), nonce.encode()):
                return True
            if await given_up():
                return False
            left = max(0.0, lease.deadline - time.monotonic())
            try:
                await asyncio.wait_for(self._ended.wait(), min(left, LOOK_SECONDS))
            except TimeoutError:
                pass

    def end(self) -> None:
        """There is no lease any more."""
        self._lease = None
        self._ended.set()
        self._ended = asyncio.Event()


def ttl_of(value: object) -> int:
    """Seconds a lease shall hold; a missing or zero one is 30 s."""
    if value in (None, "", 0, "0"):
        return USUAL_SECONDS
    whole = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if not isinstance(whole, int) or isinstance(whole, bool) or not 1 <= whole <= LONGEST_SECONDS:
        raise bad_request(f"ttl must be a whole number of seconds between 1 and {LONGEST_SECONDS}")
    return whole
