"""Find runs by the beginning of an id or by when they were enqueued, through the index of the primary key."""

import re
import uuid
from datetime import datetime

from django.db.models import Q

_HEXADECIMAL = re.compile(r"[0-9a-f]{1,32}")


def id_starts_with(text: str) -> Q:
    """Runs whose UUID starts with this text, dashes or not; none when it cannot be the start of one."""
    start = text.lower().replace("-", "")
    if not _HEXADECIMAL.fullmatch(start):
        return Q(pk__in=())
    return Q(pk__gte=uuid.UUID(start.ljust(32, "0")), pk__lte=uuid.UUID(start.ljust(32, "f")))


def id_since(moment: datetime) -> Q:
    """Runs enqueued since, by the clock of whoever enqueued: their ids begin with the time (UUID version 7)."""
    return Q(pk__gte=uuid.UUID(int=int(moment.timestamp() * 1000) << 80))
