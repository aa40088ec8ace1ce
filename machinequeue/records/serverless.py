"""Serverless machines: from the wish of a web process until they are gone.

WISHED → CREATING → READY → RETIRING → GONE; what fails goes back to WISHED, with the reason and a pause.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Coalesce, Now

from machinequeue.lifecycle import ServerlessStatus as Status
from machinequeue.models import ServerlessMachine
from machinequeue.records import sql

LIVE = (Status.WISHED, Status.CREATING, Status.READY)
ERROR_CHARACTERS = 4_000


def _rows() -> QuerySet[ServerlessMachine]:
    return ServerlessMachine.objects.using(sql.alias())


# The web side -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """What a web process needs to know of one size."""

    fly_id: str
    """The machine that answers; empty while there is none."""
    asked_seconds: float
    """How long ago the rows last heard that somebody asks for it."""


def known(app: str) -> dict[str, Known]:
    """By size key, every size that is wished for or there. Of several machines the one that was ready last answers."""
    found: dict[str, Known] = {}
    rows = _rows().filter(app=app, status__in=LIVE).annotate(asked=Now() - F("asked_at"))
    for row in rows.order_by(F("ready_at").asc(nulls_first=True), "pk"):
        fly_id = row.fly_id if row.status == Status.READY else ""
        before = found.get(row.size_key)
        found[row.size_key] = Known(fly_id or (before.fly_id if before else ""), row.asked.total_seconds())
    return found


def wish(app: str, size_key: str, size: dict[str, Any]) -> bool:
    """Ask for a machine of this size. False when somebody did already: there is one row however many ask."""
    database = sql.alias()
    if _rows().filter(app=app, size_key=size_key, status__in=LIVE).exists():
        return False
    try:
        with transaction.atomic(using=database):
            ServerlessMachine(app=app, size_key=size_key, size=size).save(using=database, force_insert=True)
    except IntegrityError:
        return False
    return True


def asked(app: str, size_keys: list[str]) -> int:
    """Views of these sizes are asked for: their machines stay. How many rows heard it."""
    return _rows().filter(app=app, size_key__in=size_keys, status__in=LIVE).update(asked_at=Now())


def checked_in(name: str, *, fly_id: str, region: str) -> bool:
    """A machine's server answers: CREATING → READY, or a stopped one came back. False when it is not wanted."""
    return bool(
        _rows()
        .filter(Q(fly_id="") | Q(fly_id=fly_id), name=name, status__in=(Status.CREATING, Status.READY))
        .update(
            status=Status.READY,
            fly_id=fly_id,
            region=region or F("region"),
            ready_at=Coalesce("ready_at", Now()),
            booted_at=Now(),
            state="started",
            failures=0,
            error="",
        )
    )


# The dispatcher's side ----------------------------------------------------------------------------------------------


def present(app: str) -> list[ServerlessMachine]:
    """The rows of the app that are not gone, each with `now`, the database's clock."""
    return list(_rows().filter(app=app).exclude(status=Status.GONE).annotate(now=Now()).order_by("pk"))


def aim(row: ServerlessMachine, image: str, name: str) -> bool:
    """A wish gets the image and the name of the machine to come. False, and no row left, when there is one already.

    What failed with another image says nothing of this one.
    """
    rows = _rows().filter(pk=row.pk, status=Status.WISHED)
    anew: dict[str, Any] = {"failures": 0, "error": "", "next_at": Now()} if row.image != image else {}
    try:
        with transaction.atomic(using=sql.alias()):
            return bool(rows.update(image=image, name=name, **anew))
    except IntegrityError:
        rows.delete()
        return False


def succeed(row: ServerlessMachine, image: str, name: str) -> bool:
    """Wish for a machine of another image beside one that is ready. False when there is such a wish."""
    heir = ServerlessMachine(app=row.app, size_key=row.size_key, size=row.size, image=image, name=name)
    heir.asked_at = row.asked_at
    try:
        with transaction.atomic(using=sql.alias()):
            heir.save(using=sql.alias(), force_insert=True)
    except IntegrityError:
        return False
    return True


def requesting(row: ServerlessMachine) -> bool:
    """The create call is about to be made: WISHED → CREATING. False when another dispatcher makes it."""
    rows = _rows().filter(pk=row.pk, status=Status.WISHED, name=row.name, next_at__lte=Now())
    return bool(rows.update(status=Status.CREATING, requested_at=Now(), fly_id="", state=""))


def created(row: ServerlessMachine, *, fly_id: str, region: str, state: str) -> bool:
    """Fly has it under this id; False when the row is given up, or has the id already."""
    rows = _rows().filter(pk=row.pk, name=row.name, fly_id="").exclude(status=Status.GONE)
    return bool(rows.update(fly_id=fly_id, region=region, state=state))


def failed(row: ServerlessMachine, error: str, *, pause: float, name: str) -> bool:
    """CREATING → WISHED: again after so many seconds. A machine of the old name must be gone when `name` is another."""
    rows = _rows().filter(pk=row.pk, status=Status.CREATING, name=row.name)
    return bool(
        rows.update(
            status=Status.WISHED,
            name=name,
            fly_id="",
            state="",
            failures=F("failures") + 1,
            error=error[:ERROR_CHARACTERS],
            next_at=Now() + timedelta(seconds=pause),
        )
    )


def retire(row: ServerlessMachine, reason: str) -> bool:
    """CREATING or READY → RETIRING: requests are sent to it no more."""
    rows = _rows().filter(pk=row.pk, status__in=(Status.CREATING, Status.READY))
    return bool(rows.update(status=Status.RETIRING, retired_at=Now(), error=reason))


def drop(row: ServerlessMachine) -> bool:
    """A wish that nobody has any more."""
    return bool(_rows().filter(pk=row.pk, status=Status.WISHED).delete()[0])


def seen(row: ServerlessMachine, state: str) -> None:
    """Note Fly's state where it changed."""
    _rows().filter(pk=row.pk).exclude(state=state).update(state=state)


def gone(row: ServerlessMachine, reason: str = "") -> bool:
    """Fly knows the machine no more: → GONE."""
    rows = _rows().filter(pk=row.pk).exclude(status=Status.GONE)
    error = Value(reason) if reason else F("error")
    return bool(rows.update(status=Status.GONE, state="destroyed", gone_at=Now(), error=error))


def names() -> set[str]:
    """The names of all machines that rows say are there, or are about to be."""
    return set(_rows().exclude(status=Status.GONE).exclude(name="").values_list("name", flat=True))


def ever() -> bool:
    """Whether there is any row, be it of a machine that is gone."""
    return _rows().exists()


def prune(seconds: float) -> int:
    """Forget machines that have been gone for so long."""
    return _rows().filter(status=Status.GONE, gone_at__lt=Now() - timedelta(seconds=seconds)).delete()[0]
