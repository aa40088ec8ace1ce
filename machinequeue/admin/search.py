"""Find runs by the beginning of an id or by when they were enqueued, through the index of the primary key."""

import re
import uuid
from datetime import datetime

from django.db.models import Q

_HEXADECIMAL = re.compile(r"[0-9a-f]{1,32}")
_SURELY_AN_ID = 8
"""From so many hexadecimal digits on, nobody means the name of a task, which no index would find."""


def run_matches(word: str) -> Q:
    """Runs that a word of a search means: an id that it starts, dashes or not, or part of a task's path."""
    start = word.lower().replace("-", "")
    if not _HEXADECIMAL.fullmatch(start):
        return Q(task__icontains=word)
    by_id = Q(pk__gte=uuid.UUID(start.ljust(32, "0")), pk__lte=uuid.UUID(start.ljust(32, "f")))
    return by_id if len(start) >= _SURELY_AN_ID else by_id | Q(task__icontains=word)


def id_since(moment: datetime) -> Q:
    """Runs enqueued since, by the clock of whoever enqueued: their ids begin with the time (UUID version 7)."""
    return Q(pk__gte=uuid.UUID(int=int(moment.timestamp() * 1000) << 80))
