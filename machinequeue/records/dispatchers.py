"""Dispatchers: who is alive, who leads, and which image is current."""

from datetime import timedelta

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from machinequeue.models import Dispatcher, Release
from machinequeue.records import sql

FORGET = timedelta(days=1)


def seen(name: str) -> None:
    """This dispatcher is alive."""
    rows = Dispatcher.objects.using(sql.alias())
    if not rows.filter(name=name).update(seen_at=Now()):
        rows.bulk_create([Dispatcher(name=name)], ignore_conflicts=True)
        forget()


def forget() -> int:
    """Forget dispatchers that have been silent for long; how many."""
    return Dispatcher.objects.using(sql.alias()).filter(seen_at__lt=Now() - FORGET).delete()[0]


def alive(silent: timedelta) -> list[str]:
    """The names of the dispatchers that were seen within this time."""
    rows = Dispatcher.objects.using(sql.alias()).filter(seen_at__gte=Now() - silent)
    return list(rows.values_list("name", flat=True))


def lead(name: str, seconds: float) -> bool:
    """Take or keep the leader's lease for so long. True for one dispatcher at a time."""
    database = sql.alias()
    rows = Dispatcher.objects.using(database)
    with transaction.atomic(using=database):
        # Every row is locked in one order, so that two cannot both find no leader.
        rows.update(leads_until=F("leads_until"))
        if rows.filter(leads_until__gt=Now()).exclude(name=name).exists():
            return False
        rows.exclude(name=name).update(leads_until=None)
        return bool(rows.filter(name=name).update(leads_until=Now() + timedelta(seconds=seconds)))


def leave(name: str) -> None:
    """This dispatcher ends: another may lead at once."""
    Dispatcher.objects.using(sql.alias()).filter(name=name).delete()


def announce(image: str, version: int) -> None:
    """A dispatcher of this release started: its image is current unless a newer release spoke before."""
    rows = Release.objects.using(sql.alias())
    rows.bulk_create([Release(id=1, image=image, version=version)], ignore_conflicts=True)
    rows.filter(id=1, version__lte=version).exclude(image=image).update(
        image=image, version=version, current_since=Now()
    )


def current_image() -> str:
    """The image that new machines run; empty when no dispatcher has said one."""
    release = Release.objects.using(sql.alias()).filter(id=1).first()
    return release.image if release is not None else ""
