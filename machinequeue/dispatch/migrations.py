"""Whether the database is ready for the code of this image."""

import threading
import time

from machinequeue import conf
from machinequeue.records import migrations

LOOK_SECONDS = 5.0


class Unmigrated:
    """Says why nothing may be launched: migrations that this image has and the database has not.

    Looks every five seconds until there are none, then only when something was `missed`: code does not change while it
    runs, and a schema that goes back is rare.
    """

    def __init__(self) -> None:
        self._looked_at = -LOOK_SECONDS
        self._reason = ""
        self._done = False
        self._missed = False
        self._looking = threading.Lock()  # threads that ask while one looks wait for what it finds

    def __call__(self) -> str:
        if self._done or not (self._missed or conf.settings().wait_for_migrations):
            return ""
        return self._look()

    def missed(self) -> str:
        """A statement failed for want of a table or a column: the reason, if there is one, then until it is gone."""
        if not self._missed:
            self._looked_at, self._done = -LOOK_SECONDS, False
            self._missed = True
        return self._look()

    def blocks(self) -> str:
        """The reason, once something was missed: not only launches have to wait."""
        return self() if self._missed else ""

    def _look(self) -> str:
        with self._looking:
            if time.monotonic() - self._looked_at >= LOOK_SECONDS:
                self._reason = migrations.unapplied()
                self._looked_at = time.monotonic()
                self._done = not self._reason
                self._missed = self._missed and not self._done
            return self._reason
