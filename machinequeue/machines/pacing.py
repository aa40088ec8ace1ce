"""Fly allows about one request a second per action and app. Who sends several from several processes must share a pace.

The client knows only this protocol; where the count is kept is the caller's.
"""

from __future__ import annotations

from typing import Protocol

LONGEST_PACE = 5.0
"""Seconds that a call is held back, for its turn or after a 429. What takes longer is said, and not waited for."""


class Pace(Protocol):
    """Turns for the actions "create" and "list" of an app. Asked from any thread."""

    def reserve(self, app: str, action: str, longest: float) -> float:
        """Seconds until this call's turn; more than `longest` means that no turn was taken."""

    def refused(self, app: str, action: str, seconds: float) -> None:
        """Fly answered 429 all the same: nobody's turn comes within so many seconds."""
