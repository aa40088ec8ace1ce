"""What commands write to their streams, byte for byte, for those who follow them."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from machinequeue.lifecycle import AttemptStatus
from machinequeue.models import Attempt, OutputPiece
from machinequeue.records import sql

READ_AT_ONCE = 64
"""Pieces: what one look of a follower holds in memory."""


@dataclass(frozen=True)
class Piece:
    """A part of a stream. `position` counts the bytes before it, those too that were not kept."""

    stream: str
    """stdout, stderr."""
    position: int
    data: bytes
    ended: bool = False
    """The end of the stream, whose length is then `position`."""


@dataclass(frozen=True)
class Stored:
    """A piece as a follower reads it."""

    number: int
    """Pieces of a run are read in this order."""
    epoch: int
    piece: Piece


def add(run_id: uuid.UUID, epoch: int, pieces: Sequence[Piece]) -> bool:
    """Store pieces of an attempt. False, and nothing is stored, when it has ended."""
    attempts = Attempt.objects.using(sql.alias()).filter(run_id=run_id, epoch=epoch)
    attempt = attempts.filter(status=AttemptStatus.RUNNING).values_list("pk").first()
    if attempt is None:
        return False
    rows = [
        OutputPiece(attempt_id=attempt[0], stream=each.stream, position=each.position, data=each.data, ended=each.ended)
        for each in pieces
    ]
    OutputPiece.objects.using(sql.alias()).bulk_create(rows)
    return True


def after(run_id: uuid.UUID, number: int) -> list[Stored]:
    """The next pieces of a run after this one, at most READ_AT_ONCE."""
    rows = OutputPiece.objects.using(sql.alias()).filter(attempt__run_id=run_id, pk__gt=number).order_by("pk")
    names = ("pk", "attempt__epoch", "stream", "position", "data", "ended")
    return [
        Stored(pk, epoch, Piece(stream, position, bytes(data), ended))
        for pk, epoch, stream, position, data, ended in rows.values_list(*names)[:READ_AT_ONCE]
    ]
