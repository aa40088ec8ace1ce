"""Circuits: launches that keep failing for one reason, and when the next may be tried."""

from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from machinequeue import lifecycle
from machinequeue.lifecycle import CircuitKind, MachineStatus, RunStatus
from machinequeue.models import Circuit, Machine, TaskRun
from machinequeue.records import sql


def _rows() -> QuerySet[Circuit]:
    return Circuit.objects.using(sql.alias())


def failed(
    kind: CircuitKind, reason: str, *, image: str = "", spec_key: str = "", launched_at: datetime | None = None
) -> bool:
    """One more failure in a row; launches pause, and after some the circuit opens. True when it opened just now.

    A machine that was `launched_at` before the last failure tells of the same one, which is not counted again.
    """
    with transaction.atomic(using=sql.alias()):
        key = ("kind", "image", "spec_key")
        new = Circuit(kind=kind, image=image, spec_key=spec_key)
        # Locks the row that is there, which an insert that ignores it would not: another may be about to close it.
        _rows().bulk_create([new], update_conflicts=True, unique_fields=key, update_fields=["kind"])
        row = _rows().filter(kind=kind, image=image, spec_key=spec_key)
        counted = row if launched_at is None else row.filter(Q(failures=0) | Q(failed_at__lte=launched_at))
        if not counted.update(failures=F("failures") + 1):
            return False
        circuit = row.get()
        is_open, seconds = lifecycle.pause(kind, circuit.failures)
        row.update(
            failed_at=Now(),
            next_at=Now() + timedelta(seconds=seconds),
            reason=reason,
            **({"opened_at": Now()} if is_open and circuit.opened_at is None else {}),
        )
    return is_open and circuit.opened_at is None


def mend() -> int:
    """Close the circuits of boots since whose last failure a machine has come as far as claiming; how many."""
    later = Machine.objects.filter(
        image=OuterRef("image"), spec_key=OuterRef("spec_key"), booted_at__gt=OuterRef("failed_at")
    )
    # A machine that found nothing to claim has said so: it was seen again after its check-in.
    working = later.filter(Q(status=MachineStatus.BUSY) | Q(seen_at__gt=F("booted_at")) | Q(runs__gt=0))
    return _rows().filter(Exists(working), kind=CircuitKind.BOOT).delete()[0]


def launched(image: str, spec_key: str) -> None:
    """Fly accepted a machine: what kept the API from it is mended."""
    anywhere = Q(kind__in=(CircuitKind.TOKEN, CircuitKind.APP, CircuitKind.QUOTA))
    own = Q(kind=CircuitKind.IMAGE, image=image) | Q(kind=CircuitKind.REJECTED, image=image, spec_key=spec_key)
    _rows().filter(anywhere | own | Q(kind=CircuitKind.CAPACITY, spec_key=spec_key)).delete()


def forget_images(current: str) -> int:
    """Forget what was wrong with images that nobody launches any more; how many circuits."""
    old = _rows().exclude(image__in=("", current))
    if not old.exists():
        return 0
    ready = TaskRun.objects.using(sql.alias()).filter(status=RunStatus.READY, spec__image__isnull=False)
    pinned = set(ready.values_list("spec__image", flat=True).distinct())
    return old.exclude(image__in=pinned).delete()[0]


def retry_now(pk: Any) -> bool:
    """An operator has mended something: the next launch may be tried at once. False when it may be already."""
    return bool(_rows().filter(pk=pk, next_at__gt=Now()).update(next_at=Now()))


def close(*kinds: CircuitKind) -> int:
    """Forget all circuits of these kinds: a dispatcher started, whose settings may have mended them."""
    return _rows().filter(kind__in=kinds).delete()[0]


def is_open(kind: CircuitKind, image: str) -> bool:
    """Whether launches of this image are held back for this reason."""
    return _rows().filter(kind=kind, image=image, opened_at__isnull=False).exists()


def failures(kind: CircuitKind, *, image: str, spec_key: str) -> int:
    """Failures in a row."""
    row = _rows().filter(kind=kind, image=image, spec_key=spec_key).first()
    return row.failures if row is not None else 0


def concerning(image: str, spec_key: str) -> list[Circuit]:
    """The circuits that a launch of this image and spec has to do with."""
    either = Q(image__in=("", image), spec_key__in=("", spec_key))
    return list(_rows().filter(either).order_by("pk"))


def admit(image: str, spec_key: str) -> tuple[int | None, str]:
    """How many machines may be launched now, None for any number, and why not more.

    With a circuit there, one launch at a time tries whether it is mended; to be called under the queue's lock.
    """
    circuits = concerning(image, spec_key)
    if not circuits:
        return None, ""
    waiting = _rows().filter(pk__in=[circuit.pk for circuit in circuits], next_at__gt=Now()).first()
    if waiting is not None:
        return 0, in_words(waiting)
    for circuit in circuits:
        _, seconds = lifecycle.pause(CircuitKind(circuit.kind), max(circuit.failures, 1))
        _rows().filter(pk=circuit.pk).update(next_at=Now() + timedelta(seconds=seconds))
    return 1, in_words(circuits[0])


def holding(image: str, spec_key: str) -> str:
    """Why nothing of this image and spec may be launched now; empty when it may."""
    pks = [circuit.pk for circuit in concerning(image, spec_key)]
    waiting = _rows().filter(pk__in=pks, next_at__gt=Now()).first() if pks else None
    return in_words(waiting) if waiting is not None else ""


def give_back(image: str, spec_key: str) -> None:
    """A launch that was admitted was not tried: the next one may."""
    _rows().filter(pk__in=[circuit.pk for circuit in concerning(image, spec_key)]).update(next_at=Now())


def in_words(circuit: Circuit) -> str:
    """Why launches pause."""
    if circuit.opened_at is None:
        times = f"{circuit.failures} times" if circuit.failures > 1 else "once"
        return f"failed {times}, trying again soon: {circuit.reason}"
    tries = lifecycle.PATIENCE[CircuitKind(circuit.kind)].probe_seconds
    every = f"{tries / 60:g} min" if tries >= 60 else f"{tries:g} s"
    return f"{circuit.reason} (tried again every {every} since {circuit.opened_at:%H:%M:%S %Z})"


def all_open() -> list[Circuit]:
    """The circuits that an operator should know of."""
    return list(_rows().filter(opened_at__isnull=False).order_by("pk"))
