"""How long boots take: a real machine is neither prepared nor started at once.

A delay is written "2" (always 2 s), "2..5" (evenly between) or "~3" (log-normal with a median of 3 s: now and then much
longer, as image pulls are).
"""

from __future__ import annotations

import math
import random
import re
from collections import deque
from collections.abc import Callable, Mapping

KINDS = ("create", "start")
LONGEST_SECONDS = 86_400.0
SPREAD = 0.5  # of the logarithm: about one boot in forty takes more than 2.7 times the median
_NUMBER = r"\d+(?:\.\d+)?"
_DELAY = re.compile(rf"(?P<fixed>{_NUMBER})|(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})|~(?P<median>{_NUMBER})")

Draw = Callable[[], float]


class Delays:
    """Seconds per kind: "create" keeps a new machine in `created`, "start" a later boot in `starting`.

    Without an entry a kind costs nothing.
    """

    def __init__(self, draws: Mapping[str, Draw] | None = None) -> None:
        self._draws = dict(draws or {})
        self._held: dict[str, deque[float]] = {kind: deque() for kind in KINDS}

    @classmethod
    def parse(cls, text: str) -> Delays:
        """From "create=2..5,start=0.5". Raises ValueError with a sentence."""
        draws: dict[str, Draw] = {}
        for part in text.split(","):
            name, _, delay = part.strip().partition("=")
            kind = _kind(name)
            draws[kind] = _draw(delay)
        return cls(draws)

    def draw(self, kind: str) -> float:
        """Seconds that the next boot of this kind takes: those held for it, else as configured, else 0."""
        if self._held[kind]:
            return self._held[kind].popleft()
        return self._draws[kind]() if kind in self._draws else 0.0

    def hold(self, kind: str, seconds: float, times: int = 1) -> None:
        """Make the next `times` boots of this kind take `seconds`. Raises ValueError with a sentence."""
        if not 0 <= seconds <= LONGEST_SECONDS:
            raise ValueError(f"a boot takes 0 to {LONGEST_SECONDS:g} seconds, not {seconds!r}")
        if times < 1:
            raise ValueError(f"times is at least 1, not {times!r}")
        self._held[_kind(kind)].extend([float(seconds)] * times)


def _kind(name: str) -> str:
    if name not in KINDS:
        raise ValueError(f"a boot is one of: {', '.join(KINDS)}, not {name!r}")
    return name


def _draw(text: str) -> Draw:
    found = _DELAY.fullmatch(text)
    numbers = [float(number) for number in re.findall(_NUMBER, text)]
    if not found or max(numbers) > LONGEST_SECONDS or numbers != sorted(numbers):
        raise ValueError(f"a boot's delay is SECONDS, FROM..TO or ~MEDIAN (at most {LONGEST_SECONDS:g}), not {text!r}")
    if found["fixed"]:
        return lambda: numbers[0]
    if found["low"]:
        return lambda: random.uniform(numbers[0], numbers[1])
    if not numbers[0]:
        return lambda: 0.0
    return lambda: min(random.lognormvariate(math.log(numbers[0]), SPREAD), LONGEST_SECONDS)
