"""Waiting in tests: for a condition, with a deadline, never for a length of time."""

import threading
import time
from collections.abc import Callable

LOOK_EVERY = 0.02
LOOKS_COST = 0.2
"""The part of the time that looking may take: some conditions ask all processes, and others have work to do."""


class TooLate(AssertionError):
    """The condition did not come true before the deadline."""


def until[T](condition: Callable[[], T], seconds: float = 60.0, what: Callable[[], object] | str = "") -> T:
    """The first true value of the condition. Raises TooLate, with `what` (or what it returns), after the deadline."""
    clock, deadline = threading.Event(), time.monotonic() + seconds
    while True:
        begin = time.monotonic()
        if value := condition():
            return value
        end = time.monotonic()
        if end > deadline:
            raise TooLate(f"not within {seconds:g} s: {what() if callable(what) else what or condition}")
        clock.wait(max(LOOK_EVERY, (end - begin) / LOOKS_COST))
