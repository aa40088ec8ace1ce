"""What happened, one JSON object a line: every request that changes something, every event of a machine.

Bodies, headers and env are never written.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Journal:
    """Appends to `path`; a line is on its way to the disk before the answer is."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, **fields: Any) -> None:
        """One line; `at` is seconds since the epoch."""
        line = {"at": round(time.time(), 6), "kind": kind, **fields}
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
