"""What this process knows of the serverless machines: read from rows in the background, so that no request waits long.

A request reads memory. When that is older than FRESH_SECONDS a thread reads the rows again, and writes the wishes of
the requests that found no machine; only a request that finds nothing younger than STALE_SECONDS waits for it, at most
PATIENCE_SECONDS. A database that is away costs no request: it is answered where it is.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, wait

from django.db import connections

from machinequeue import conf
from machinequeue.records import serverless
from machinequeue.serverless.views import Wanted
from machinequeue.telemetry import emit

FRESH_SECONDS = 1.0
STALE_SECONDS = 30.0
PATIENCE_SECONDS = 0.25
FAILURE_SECONDS = 5.0
"""For so long after a failure the database is not asked again."""
HOPELESS_SECONDS = 60.0
"""A reading that takes so long hangs in a connection that is dead, and is left to itself."""
LEAST_ASKED_SHARE = 0.1
"""The rows hear that somebody asks when they last did so this share of `SERVERLESS_KEEP` ago."""


class Fleet:
    """The machines by size key, shared by the threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: Mapping[str, serverless.Known] = {}
        self._read_at = -STALE_SECONDS
        self._failed_at = -FAILURE_SECONDS
        self._asked: dict[str, Wanted] = {}
        self._reading: Future[None] | None = None
        self._reading_since = 0.0

    def instance(self, wanted: Wanted) -> tuple[str, str]:
        """The Fly id of the machine that answers; or no id, and why there is none."""
        if reading := self._ask(wanted):
            wait([reading], PATIENCE_SECONDS)
        return self._answer(wanted)

    async def ainstance(self, wanted: Wanted) -> tuple[str, str]:
        """See `instance`; the event loop goes on."""
        if reading := self._ask(wanted):
            await asyncio.wait([asyncio.wrap_future(reading)], timeout=PATIENCE_SECONDS)
        return self._answer(wanted)

    def idle(self) -> bool:
        """Whether no thread reads."""
        with self._lock:
            return self._reading is None

    def _ask(self, wanted: Wanted) -> "Future[None] | None":
        """See to it that the rows are read; what to wait for, when nothing useful is known."""
        now = time.monotonic()
        with self._lock:
            age = now - self._read_at
            if (age < FRESH_SECONDS and wanted.size_key in self._known) or now - self._failed_at < FAILURE_SECONDS:
                return None
            self._asked[wanted.size_key] = wanted
            reads = self._reading is not None and now - self._reading_since < HOPELESS_SECONDS
            if not reads and not self._begin_reading(now):
                return None
            # Who comes while a database hangs need not find that out again.
            late = now - self._reading_since > PATIENCE_SECONDS
            known = wanted.size_key in self._known and age < STALE_SECONDS
            return None if late or known else self._reading

    def _begin_reading(self, now: float) -> bool:
        self._reading, self._reading_since = Future(), now
        try:
            threading.Thread(target=self._read, args=(self._reading,), name="machinequeue-fleet", daemon=True).start()
        except RuntimeError:  # no thread can be had, as at the end of a process
            self._reading = None
        return self._reading is not None

    def _answer(self, wanted: Wanted) -> tuple[str, str]:
        with self._lock:
            if time.monotonic() - self._read_at > STALE_SECONDS:
                return "", "the database was not reached"
            found = self._known.get(wanted.size_key)
        if found is None:
            return "", "no machine was asked for yet"
        return (found.fly_id, "") if found.fly_id else ("", "its machine is on its way")

    def _read(self, reading: "Future[None]") -> None:
        with self._lock:
            asked, self._asked = self._asked, {}
        try:
            known = _read_and_wish(asked)
        except Exception as error:
            # Whatever the database has against it: the request is answered, and the operator told.
            emit("serverless.unreachable", error=f"{type(error).__name__}: {error}".strip())
            known = None
        finally:
            connections.close_all()  # of this thread
        with self._lock:
            if reading is self._reading:  # else it took too long, and another has taken its place
                if known is None:
                    self._known, self._failed_at, self._read_at = {}, time.monotonic(), -STALE_SECONDS
                else:
                    self._known, self._read_at = known, time.monotonic()
                self._reading = None
        reading.set_result(None)


def _read_and_wish(asked: Mapping[str, Wanted]) -> Mapping[str, serverless.Known]:
    settings = conf.settings()
    known = serverless.known(settings.app)
    missing = [wanted for key, wanted in asked.items() if key not in known]
    for wanted in missing:
        if serverless.wish(settings.app, wanted.size_key, dict(wanted.size)):
            emit("serverless.wished", size=wanted.size_key)
    settled = settings.serverless_keep * LEAST_ASKED_SHARE
    if old := [key for key in asked if key in known and known[key].asked_seconds > settled]:
        serverless.asked(settings.app, old)
    return serverless.known(settings.app) if missing else known
