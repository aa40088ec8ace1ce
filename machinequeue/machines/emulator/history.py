"""The events of one machine, newest first, also written to the journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from machinequeue.machines.emulator import names
from machinequeue.machines.emulator.journal import Journal

KEPT_EVENTS = 200


class History:
    """Remembers; time stamps never repeat or run backwards, so that "newest" is well defined."""

    def __init__(self, journal: Journal, machine_id: str, machine_name: str) -> None:
        self._journal = journal
        self._machine = {"machine": machine_id, "name": machine_name}
        self._events: list[dict[str, Any]] = []

    def add(self, kind: str, status: str, source: str, *, pid: int | None = None, **request: Any) -> None:
        """One event; `request` is its payload, `pid` goes to the journal only."""
        last = self._events[0]["timestamp"] if self._events else 0
        event = {
            "id": names.ulid(),
            "type": kind,
            "status": status,
            "source": source,
            "timestamp": max(names.now_ms(), last + 1),
        }
        if request:
            event["request"] = request
        self._events.insert(0, event)
        del self._events[KEPT_EVENTS:]
        extra = {"pid": pid} if pid is not None else {}
        payload = {"exit_event": request["exit_event"]} if "exit_event" in request else {}
        shown = {"type": kind, "status": status, "source": source, "event_id": event["id"]}
        self._journal.write("event", **self._machine, **shown, **extra, **payload)

    def copy(self) -> History:
        """The events as they are now."""
        copied = History(self._journal, self._machine["machine"], self._machine["name"])
        copied._events = [*self._events]
        return copied

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Up to `limit` events, newest first."""
        return self._events[:limit]


def exit_event(report: Mapping[str, Any], *, requested_stop: bool, restarting: bool) -> dict[str, Any]:
    """Fly's exit event for what an init reported."""
    return {
        "exit_code": report["exit"],
        "guest_exit_code": 0,
        "guest_signal": -1,
        "signal": report["signal"],
        "oom_killed": report["oom"],
        "requested_stop": requested_stop,
        "restarting": restarting,
        "error": "",
        "exited_at": names.rfc3339(names.now_ms()),
    }
