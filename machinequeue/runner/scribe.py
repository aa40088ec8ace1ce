"""The scribe: a thread with a connection of its own that keeps the claim alive and stores what comes while a task runs.

It stores output, progress and checkpoints, hears of cancellation, and weighs the task's family of processes.
"""

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

from machinequeue.records import claims
from machinequeue.records.claims import Claim, Saved
from machinequeue.runner import processes
from machinequeue.runner.news import News
from machinequeue.runner.output import Output

logger = logging.getLogger("machinequeue.runner")

WRITE_SECONDS = 1.0
"""Output, progress and checkpoints are stored at most this often."""
LISTEN_AFTER = 0.5
"""Seconds after which a run is worth a LISTEN for its cancellation: most are over before."""
CANCEL_SECONDS = 2.0
"""How often a request to cancel is looked for, too: without PostgreSQL, or behind a pooler, none is heard."""


@dataclass
class Watched:
    """The attempt being watched, and what the scribe has learned about it."""

    claim: Claim
    output: Output
    pid: int = 0
    """0 until the task has a process."""
    since: float = field(default_factory=time.monotonic)
    progress: Any = None
    progress_stored: Any = None
    saved: Saved | None = None
    """The newest checkpoint."""
    saved_stored: Saved | None = None
    family_mb: int = 0
    """The most that the task process and its children were seen to hold together."""
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
        self._cancels = News("machinequeue_cancel", self._is_watched)
        self.descriptor, self._news = os.pipe()
        os.set_blocking(self.descriptor, False)
        self._thread: threading.Thread | None = None

    def watch(self, claim: Claim, output: Output) -> Watched:
        """Begin to keep this claim alive."""
        self._beat_at = time.monotonic() + self._beat
        self._look_at = time.monotonic() + CANCEL_SECONDS
        watched = self._watched = Watched(claim, output)
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="scribe", daemon=True)
            self._thread.start()
        return watched

    def release(self) -> None:
        """Stop; after this the scribe writes nothing more of that attempt."""
        self._watched = None
        with self._writing:
            pass

    def _is_watched(self, run_id: str) -> bool:
        watched = self._watched
        return watched is not None and run_id == str(watched.claim.run_id)

    def _live(self) -> None:
        # It is not woken for each run: most are over before the first second is.
        while True:
            if self._cancels.wait(WRITE_SECONDS):
                self._look_at = 0.0
            if (watched := self._watched) is not None:
                watched.family_mb = max(watched.family_mb, processes.family_mb(watched.pid))
            with self._writing:
                if (watched := self._watched) is not None:
                    self._write(watched)

    def _write(self, watched: Watched) -> None:
        try:
            self._listen(watched)
            fresh = watched.progress is not watched.progress_stored or watched.saved is not watched.saved_stored
            if fresh or time.monotonic() >= self._beat_at:
                self._heartbeat(watched)
            elif time.monotonic() >= self._look_at:
                self._look(watched)
            if watched.output.waiting and not watched.lost:
                text, dropped = watched.output.take()
                if text:
                    claims.add_output(watched.claim, text, dropped)
        except (DatabaseError, InterfaceError) as error:
            # The lease outlasts several heartbeats; the next one may find the database again.
            logger.warning("A heartbeat could not be written: %s", type(error).__name__)
            connections.close_all()
        except Exception:
            logger.exception("The scribe failed")

    def _listen(self, watched: Watched) -> None:
        if self._cancels.listening or time.monotonic() - watched.since < LISTEN_AFTER:
            return
        if self._cancels.listen():
            self._look_at = 0.0  # whatever was asked before was not heard

    def _heartbeat(self, watched: Watched) -> None:
        progress, saved = watched.progress, watched.saved
        pulse = claims.heartbeat(
            watched.claim,
            lease_seconds=self._lease,
            pid=watched.pid or None,
            progress=progress,
            saved=saved if saved is not watched.saved_stored else None,
        )
        watched.progress_stored, watched.saved_stored = progress, saved
        self._beat_at = time.monotonic() + self._beat
        self._learn(watched, pulse)

    def _look(self, watched: Watched) -> None:
        self._look_at = time.monotonic() + CANCEL_SECONDS
        self._learn(watched, claims.pulse(watched.claim))

    def _learn(self, watched: Watched, pulse: claims.Pulse) -> None:
        watched.lost, watched.cancel = not pulse.held, pulse.cancel
        if watched.lost or watched.cancel:
            os.write(self._news, b"!")
