"""Waiting in tests: for a condition, with a deadline, never for a length of time."""

import threading
import time
from collections.abc import Callable

LOOK_EVERY = 0.02


class TooLate(AssertionError):
    """The condition did not come true before the deadline."""


def until[T](condition: Callable[[], T], seconds: float = 20.0, what: Callable[[], object] | str = "") -> T:
    """The first true value of the condition. Raises TooLate, with `what` (or what it returns), after the deadline."""
    clock, deadline = threading.Event(), time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TooLate(f"not within {seconds:g} s: {what() if callable(what) else what or condition}")
        clock.wait(LOOK_EVERY)
    return value
