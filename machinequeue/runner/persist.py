"""Write to a database that may be away for a while."""

import random
import time
from collections.abc import Callable
from typing import Any

from django.db import InterfaceError, OperationalError, connections

from machinequeue.telemetry import emit

LONGEST = 60.0
"""Seconds for which a database may be away."""


def persist[T](step: Callable[[], T]) -> T:
    """Do the step, again on a fresh connection while the database cannot be reached, for a minute at most."""
    begin, pause = time.monotonic(), 0.1
    while True:
        try:
            return step()
        except (OperationalError, InterfaceError) as error:
            if time.monotonic() - begin > LONGEST:
                raise
            emit("database.unreachable", error=_short(error))
            connections.close_all()
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 5.0)


def _short(error: Any) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
