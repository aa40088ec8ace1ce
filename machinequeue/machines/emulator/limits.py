"""Fly's rate limits: a bucket per action and identifier (a machine, else the app).

1 request a second with a burst of 3; get 5 and 10; 100 deleted apps a minute, whatever their names.
"""

from __future__ import annotations

import time

from machinequeue.machines.emulator.answers import rate_limited

DELETE_APP = "app-delete"
USUAL = (1.0, 3.0)
SPECIAL = {"get": (5.0, 10.0), DELETE_APP: (100 / 60, 100.0)}
# No limit is documented for these.
FREE = frozenset({"app-list", "app-create", "app-get", "secret-get", "secret-set", "logs", "token", "regions", ""})
SWEEP_ABOVE = 10_000


class Limits:
    """Counts, unless it is off."""

    def __init__(self, on: bool) -> None:
        self._on = on
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def spend(self, action: str, identifier: str) -> None:
        """Take one token. Raises the 429 refusal when there is none."""
        if not self._on or action in FREE:
            return
        identifier = "" if action == DELETE_APP else identifier
        per_second, burst = SPECIAL.get(action, USUAL)
        now = time.monotonic()
        tokens, at = self._buckets.get((action, identifier), (burst, now))
        tokens = min(burst, tokens + (now - at) * per_second)
        if tokens < 1:
            raise rate_limited()
        self._buckets[(action, identifier)] = (tokens - 1, now)
        if len(self._buckets) > SWEEP_ABOVE:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        full_again = max(burst / per_second for per_second, burst in (USUAL, *SPECIAL.values()))
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket[1] < full_again}
