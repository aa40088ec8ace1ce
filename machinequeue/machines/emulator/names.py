"""Names and numbers that look like Fly's."""

from __future__ import annotations

import random
import re
import secrets
import time
from datetime import UTC, datetime

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_clock = {"offset_ns": 0}


def is_app_name(text: object) -> bool:
    """Lower-case letters, digits and dashes, at most 63."""
    return isinstance(text, str) and re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", text) is not None


def ulid() -> str:
    """26 characters that sort by time."""
    number = now_ms() << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -5, -5))


def machine_id() -> str:
    """14 hexadecimal digits."""
    return secrets.token_hex(7)


def machine_name() -> str:
    """A name for a machine that was given none."""
    first = random.choice(("autumn", "bold", "calm", "damp", "early", "frosty", "green", "hidden", "late", "young"))
    second = random.choice(("brook", "cloud", "dawn", "field", "leaf", "moon", "river", "snow", "sun", "wave"))
    return f"{first}-{second}-{secrets.randbelow(9000) + 1000}"


def clock_offset() -> float:
    """How many seconds the emulator's clock is ahead."""
    return _clock["offset_ns"] / 1e9


def set_clock(offset_seconds: float) -> None:
    """Put the emulator's clock ahead, or behind."""
    _clock["offset_ns"] = round(offset_seconds * 1e9)


def now_ns() -> int:
    """Nanoseconds since the epoch, by the emulator's clock."""
    return time.time_ns() + _clock["offset_ns"]


def now_ms() -> int:
    """Milliseconds since the epoch, by the emulator's clock."""
    return now_ns() // 1_000_000


def rfc3339(milliseconds: int) -> str:
    """As Fly writes times."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
