"""Machines: from reserved to gone."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Case, F, Q, QuerySet, Value, When
from django.db.models.functions import Now

from machinequeue.lifecycle import MachineStatus
from machinequeue.models import Machine, TaskProfile
from machinequeue.records import sql

SETTLED = timedelta(seconds=5)
"""How long after its creation a machine may still be unknown to the API."""


def _rows() -> QuerySet[Machine]:
    return Machine.objects.using(sql.alias())


def requesting(machine: Machine) -> bool:
    """The create call is about to be made. False when another dispatcher makes it."""
    free = Q(requested_at__isnull=True) | Q(requested_at__lt=Now() - timedelta(seconds=60))
    return bool(_rows().filter(free, pk=machine.pk, status=MachineStatus.RESERVED).update(requested_at=Now()))


def created(machine: Machine, *, fly_id: str, region: str, state: str, request_ids: list[str]) -> bool:
    """Fly answered with an id: RESERVED → CREATED, unless the machine has checked in already."""
    return _exists(_rows().filter(pk=machine.pk), fly_id=fly_id, region=region, state=state, request_ids=request_ids)


def found(machine: Machine, *, fly_id: str, region: str, state: str) -> bool:
    """A list shows a machine whose create call's answer was lost, or is about to be noted: take over its id."""
    return _exists(_rows().filter(pk=machine.pk, fly_id=""), fly_id=fly_id, region=region, state=state)


def _exists(rows: QuerySet[Machine], **known: Any) -> bool:
    status = Case(When(status=MachineStatus.RESERVED, then=Value(MachineStatus.CREATED)), default=F("status"))
    return bool(rows.exclude(status=MachineStatus.GONE).update(created_at=Now(), status=status, **known))


def refused(machine: Machine, reason: str, request_ids: list[str]) -> bool:
    """The create call failed and left nothing behind: RESERVED → GONE."""
    rows = _rows().filter(pk=machine.pk, status=MachineStatus.RESERVED)
    return bool(rows.update(status=MachineStatus.GONE, gone_at=Now(), reason=reason, request_ids=request_ids))


@dataclass(frozen=True)
class CheckIn:
    """What a runner learns when it checks in."""

    machine_id: int
    backend: str
    queue: str
    spec_key: str
    isolation: str
    life_seconds: float
    task: str
    """Path of the task that the machine was launched for; empty when that run is gone."""


def check_in(name: str, *, boot_id: str, fly_id: str, region: str, stages: dict[str, float]) -> CheckIn | None:
    """A runner says that it is up: → BOOTED with its boot id. None when the machine was given up, or is unknown."""
    live = (
        _rows()
        .filter(name=name, deadline_at__gt=Now())
        .exclude(status__in=(MachineStatus.GONE, MachineStatus.RETIRING))
    )
    found = live.update(
        status=MachineStatus.BOOTED,
        boot_id=boot_id,
        booted_at=Now(),
        seen_at=Now(),
        region=region or F("region"),
        stages=stages,
        **({"fly_id": fly_id} if fly_id else {}),
    )
    if not found:
        return None
    row = _rows().annotate(left=F("deadline_at") - Now()).select_related("launched_for").get(name=name)
    return CheckIn(
        machine_id=row.pk,
        backend=row.backend,
        queue=row.queue,
        spec_key=row.spec_key,
        isolation=row.spec.get("isolation", "process"),
        life_seconds=row.left.total_seconds(),
        task=row.launched_for.task if row.launched_for else "",
    )


def idle(machine_id: int, boot_id: str, runs: int) -> bool:
    """Nothing is ready; the machine waits. False when it is to retire."""
    rows = _rows().filter(
        pk=machine_id, boot_id=boot_id, status__in=(MachineStatus.BUSY, MachineStatus.BOOTED, MachineStatus.IDLE)
    )
    return bool(rows.update(status=MachineStatus.IDLE, seen_at=Now(), runs=runs))


def leaves(machine_id: int, boot_id: str, runs: int, reason: str) -> bool:
    """The runner is about to exit: → RETIRING. It counts as a machine until Fly says that it is gone."""
    rows = _rows().filter(pk=machine_id, boot_id=boot_id).exclude(status=MachineStatus.GONE)
    return bool(rows.update(status=MachineStatus.RETIRING, seen_at=Now(), runs=runs, reason=reason))


def retire(machine: Machine, reason: str) -> bool:
    """The machine is given up; it may claim nothing more."""
    rows = _rows().filter(pk=machine.pk).exclude(status__in=(MachineStatus.GONE, MachineStatus.RETIRING))
    return bool(rows.update(status=MachineStatus.RETIRING, reason=reason))


def gone(machine: Machine, *, state: str, exit_event: dict[str, Any] | None, reason: str = "") -> bool:
    """Fly says that the machine does not exist any more: → GONE."""
    changes: dict[str, Any] = {"status": MachineStatus.GONE, "state": state, "gone_at": Now(), "exit_event": exit_event}
    if reason and not machine.reason:
        changes["reason"] = reason
    return bool(_rows().filter(pk=machine.pk).exclude(status=MachineStatus.GONE).update(**changes))


def seen(machine: Machine, state: str) -> None:
    """Note Fly's state where it changed."""
    _rows().filter(pk=machine.pk).exclude(state=state).update(state=state)


def live() -> list[Machine]:
    """Machines that are not gone."""
    return list(_rows().exclude(status=MachineStatus.GONE).order_by("id"))


def unlaunched() -> list[Machine]:
    """Reserved machines whose create call nobody is making: a dispatcher died between the two."""
    abandoned = Q(requested_at__isnull=True, reserved_at__lt=Now() - timedelta(seconds=15)) | Q(
        requested_at__lt=Now() - timedelta(seconds=90)
    )
    return list(_rows().filter(abandoned, status=MachineStatus.RESERVED))


def overdue(boot_seconds: float) -> list[Machine]:
    """Machines past their deadline, and machines that did not check in within so many seconds of the create call."""
    unborn = Q(booted_at__isnull=True, requested_at__lt=Now() - timedelta(seconds=boot_seconds))
    return list(_rows().filter(Q(deadline_at__lt=Now()) | unborn).exclude(status=MachineStatus.GONE))


def known_names(names: list[str]) -> set[str]:
    """Which of these names have a row that is not gone, or went only just now."""
    alive = ~Q(status=MachineStatus.GONE) | Q(gone_at__gt=Now() - timedelta(seconds=60))
    return set(_rows().filter(alive, name__in=names).values_list("name", flat=True))


def settled(machine: Machine) -> bool:
    """Whether the API ought to know the machine by now."""
    return _rows().filter(pk=machine.pk, created_at__lt=Now() - SETTLED).exists()


def learn(task: str, runs: int, seconds: float, peak_memory_mb: int | None) -> None:
    """Mix what runs of a task took into its profile; `seconds` is their sum. Recent runs weigh more."""
    database = sql.alias()
    with transaction.atomic(using=database):
        rows = TaskProfile.objects.using(database)
        rows.bulk_create([TaskProfile(task=task, run_seconds=seconds / runs)], ignore_conflicts=True)
        weight = min(runs, 20) / 40
        rows.filter(task=task).update(
            runs=F("runs") + runs,
            run_seconds=F("run_seconds") * (1 - weight) + seconds / runs * weight,
            updated_at=Now(),
            **({} if peak_memory_mb is None else {"peak_memory_mb": peak_memory_mb}),
        )
