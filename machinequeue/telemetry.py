"""Every event by name, logged with the same keys and sent as a signal.

`emit("run.succeeded", run=..., machine=...)` writes one line to the logger `machinequeue` whose extra carries
`event` and the keys, and sends the signal `event` with the same. Receivers that raise are logged, never felt.
"""

import logging
from typing import Any

from django.dispatch import Signal

logger = logging.getLogger("machinequeue")

event = Signal()
"""Sent for every event with `name` (str) and `fields` (dict). The sender is this module's `emit`."""

_LEVELS = {
    "enqueued": logging.DEBUG,
    "waiting": logging.DEBUG,
    "woken": logging.DEBUG,
    "served": logging.DEBUG,
    "replayed": logging.DEBUG,
    "failed": logging.WARNING,
    "lost": logging.WARNING,
    "refused": logging.WARNING,
    "unreachable": logging.WARNING,
    "outdated": logging.WARNING,
    "crashed": logging.ERROR,
}


def emit(name: str, **fields: Any) -> None:
    """Say that something happened. `name` is `noun.verb`; the fields are short values, never secrets."""
    level = _LEVELS.get(name.rpartition(".")[2], logging.INFO)
    if logger.isEnabledFor(level):
        shown = " ".join(f"{key}={value}" for key, value in fields.items() if value not in (None, ""))
        logger.log(level, "%s %s", name, shown, extra={"event": name, **{f"mq_{k}": v for k, v in fields.items()}})
    if event.receivers:
        for receiver, response in event.send_robust(sender=emit, name=name, fields=fields):
            if isinstance(response, Exception):
                logger.error("A receiver of %s raised: %r", name, receiver, exc_info=response)
