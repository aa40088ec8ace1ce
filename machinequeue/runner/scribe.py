"""The scribe: a thread with a connection of its own that keeps the claim alive and stores output while a task runs."""

import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

from machinequeue.records import claims
from machinequeue.records.claims import Claim
from machinequeue.runner.output import Output

logger = logging.getLogger("machinequeue.runner")

WRITE_SECONDS = 1.0
"""Output and progress are stored at most this often."""
CANCEL_SECONDS = 2.0
"""A request to cancel is noticed within this time."""


@dataclass
class Watched:
    """The attempt being watched, and what the scribe has learned about it."""

    claim: Claim
    output: Output
    pid: int
    progress: Any = None
    progress_stored: Any = None
    cancel: bool = False
    lost: bool = False


class Scribe:
    """`watch()` an attempt, `release()` it. `descriptor` becomes readable when there is news (cancel, lost)."""

    def __init__(self, lease_seconds: float, heartbeat_seconds: float) -> None:
        self._lease = lease_seconds
        self._beat = heartbeat_seconds
        self._writing = threading.Lock()
        self._watched: Watched | None = None
        self._beat_at = self._look_at = 0.0
        self.descriptor, self._news = os.pipe()
        os.set_blocking(self.descriptor, False)
        self._thread: threading.Thread | None = None

    def watch(self, claim: Claim, output: Output, pid: int) -> Watched:
        """Begin to keep this claim alive."""
        self._beat_at = time.monotonic() + self._beat
        self._look_at = time.monotonic() + CANCEL_SECONDS
        watched = self._watched = Watched(claim, output, pid)
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="scribe", daemon=True)
            self._thread.start()
        return watched

    def release(self) -> None:
        """Stop; after this the scribe writes nothing more of that attempt."""
        self._watched = None
        with self._writing:
            pass

    def _live(self) -> None:
        # It is not woken for each run: most are over before the first second is.
        while True:
            time.sleep(WRITE_SECONDS)
            with self._writing:
                if (watched := self._watched) is not None:
                    self._write(watched)

    def _write(self, watched: Watched) -> None:
        try:
            if watched.output.waiting:
                text, dropped = watched.output.take()
                if text:
                    claims.add_output(watched.claim, text, dropped)
            fresh = watched.progress is not watched.progress_stored
            if fresh or time.monotonic() >= self._beat_at:
                self._heartbeat(watched)
            elif time.monotonic() >= self._look_at:
                self._look(watched)
        except (DatabaseError, InterfaceError) as error:
            # The lease outlasts several heartbeats; the next one may find the database again.
            logger.warning("A heartbeat could not be written: %s", type(error).__name__)
            connections.close_all()
        except Exception:
            logger.exception("The scribe failed")

    def _heartbeat(self, watched: Watched) -> None:
        progress = watched.progress
        pulse = claims.heartbeat(watched.claim, lease_seconds=self._lease, pid=watched.pid, progress=progress)
        watched.progress_stored = progress
        self._beat_at = time.monotonic() + self._beat
        self._learn(watched, pulse)

    def _look(self, watched: Watched) -> None:
        self._look_at = time.monotonic() + CANCEL_SECONDS
        self._learn(watched, claims.pulse(watched.claim))

    def _learn(self, watched: Watched, pulse: claims.Pulse) -> None:
        watched.lost, watched.cancel = not pulse.held, pulse.cancel
        if watched.lost or watched.cancel:
            os.write(self._news, b"!")
