"""Fly's rate limits: a bucket per action and identifier, 1 request a second with a burst of 3; get 5 and 10."""

from __future__ import annotations

import time

from machinequeue.machines.emulator.answers import rate_limited

USUAL = (1.0, 3.0)
GENEROUS = {"get": (5.0, 10.0)}
SWEEP_ABOVE = 10_000


class Limits:
    """Counts, unless it is off."""

    def __init__(self, on: bool) -> None:
        self._on = on
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def spend(self, action: str, identifier: str) -> None:
        """Take one token. Raises the 429 refusal when there is none."""
        if not self._on:
            return
        per_second, burst = GENEROUS.get(action, USUAL)
        now = time.monotonic()
        tokens, at = self._buckets.get((action, identifier), (burst, now))
        tokens = min(burst, tokens + (now - at) * per_second)
        if tokens < 1:
            raise rate_limited()
        self._buckets[(action, identifier)] = (tokens - 1, now)
        if len(self._buckets) > SWEEP_ABOVE:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        full_again = max(burst / per_second for per_second, burst in (USUAL, *GENEROUS.values()))
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket[1] < full_again}
