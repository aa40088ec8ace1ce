"""What a machine printed: the newest lines in memory, all of them in a file."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machinequeue.machines.emulator import names

KEPT_LINES = 1000
LONGEST_LINE = 16 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """`at` is nanoseconds since the epoch, unique in its machine; `provider` is "app" or "runner" (the platform)."""

    at: int
    message: str
    provider: str

    def described(self, machine_id: str, region: str) -> dict[str, Any]:
        """One entry of the logs endpoint."""
        attributes = {
            "timestamp": datetime.fromtimestamp(self.at / 1e9, UTC).isoformat(),
            "message": self.message,
            "level": "info",
            "instance": machine_id,
            "region": region,
            "meta": {"instance": machine_id, "region": region, "event": {"provider": self.provider}},
        }
        return {"id": f"{self.at}", "type": "log", "attributes": attributes}


class Output:
    """Takes the bytes of a machine's stdout and stderr. The file is made by the first line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = b""
        self._last = 0
        self.lines: deque[Line] = deque(maxlen=KEPT_LINES)

    def feed(self, data: bytes) -> None:
        """Bytes as they come; empty bytes end an unfinished line."""
        if not data and not self._partial:
            return
        *lines, self._partial = (self._partial + (data or b"\n")).split(b"\n")
        if len(self._partial) > LONGEST_LINE:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            self._keep(line.decode(errors="replace"), "app")
        if lines:
            self._append(b"\n".join(lines) + b"\n")

    def say(self, message: str) -> None:
        """A line of the platform itself."""
        self._keep(message, "runner")
        self._append(f"[runner] {message}\n".encode())

    def after(self, token: int) -> list[Line]:
        """The kept lines later than a nanosecond."""
        return [line for line in self.lines if line.at > token]

    def _keep(self, message: str, provider: str) -> None:
        self._last = max(self._last + 1, names.now_ns())
        self.lines.append(Line(self._last, message, provider))

    def _append(self, data: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(data)
