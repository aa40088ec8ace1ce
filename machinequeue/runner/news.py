"""Notifications of PostgreSQL, on the thread's own connection. On SQLite there are none."""

import select
import time
from collections.abc import Callable
from typing import Any

from machinequeue.records import sql


class News:
    """LISTENs on a channel; `wait` returns early when a payload came that is `wanted`."""

    def __init__(self, channel: str, wanted: Callable[[str], bool]) -> None:
        self._channel = channel
        self._wanted = wanted
        self._listens_on: Any = None
        self._came = False

    @property
    def listening(self) -> bool:
        return self._listens_on is not None and not self._listens_on.closed

    def listen(self) -> bool:
        """LISTEN; True when the connection is another than before. To be called before looking for oneself."""
        self._came = False
        connection = sql.connection()
        if not sql.is_postgresql(connection) or (self._listens_on and connection.connection is self._listens_on):
            return False
        sql.execute(connection, f"LISTEN {self._channel}", ())
        self._listens_on = connection.connection
        self._listens_on.add_notify_handler(self._note)
        return True

    def _note(self, notification: Any) -> None:
        self._came = self._came or self._wanted(notification.payload)

    def wait(self, seconds: float, *others: int) -> bool:
        """Until a wanted payload came (True), one of the other descriptors is readable, or the time is over."""
        ends_at = time.monotonic() + seconds
        # What came in with the answer of the last query is known already.
        while not self._came and (left := ends_at - time.monotonic()) > 0:
            descriptors = [*others, self._listens_on.fileno()] if self.listening else [*others]
            ready, _, _ = select.select(descriptors, [], [], left)
            if any(each in ready for each in others):
                return False
            if ready and not self._hear():
                self._listens_on = None  # the connection is broken; the next statement says how
                return False
        came, self._came = self._came, False
        return came

    def _hear(self) -> bool:
        """Take what the server sent without being asked; False when it cannot be had."""
        try:
            self._listens_on.pgconn.consume_input()
            while (notification := self._listens_on.pgconn.notifies()) is not None:
                self._came = self._came or self._wanted(notification.extra.decode())
        except Exception:
            # libpq's errors: whatever it was, asking the database is what finds out.
            return False
        return True
