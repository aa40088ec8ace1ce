"""Find rows by the beginning of an id, through the index of the primary key."""

import re
import uuid

from django.db.models import Q

_HEXADECIMAL = re.compile(r"[0-9a-f]{1,32}")


def id_starts_with(text: str) -> Q:
    """Runs whose UUID starts with this text, dashes or not; none when it cannot be the start of one."""
    start = text.lower().replace("-", "")
    if not _HEXADECIMAL.fullmatch(start):
        return Q(pk__in=())
    return Q(pk__gte=uuid.UUID(start.ljust(32, "0")), pk__lte=uuid.UUID(start.ljust(32, "f")))
