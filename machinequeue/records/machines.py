"""Machines: from reserved to gone."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Case, F, Q, QuerySet, TextField, Value, When
from django.db.models.functions import Now

from machinequeue.lifecycle import AttemptStatus, MachineStatus
from machinequeue.models import Attempt, Machine
from machinequeue.records import claims, sql

NO_ROW = "it has no row"
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


def release(reserved: list[Machine]) -> int:
    """Give back reservations whose create call nobody has made; how many."""
    rows = _rows().filter(pk__in=[machine.pk for machine in reserved], requested_at=None)
    return rows.filter(status=MachineStatus.RESERVED).delete()[0]


def unsent(machine: Machine) -> bool:
    """The create call was not made, or Fly did not take it up: the reservation is given back."""
    return bool(_rows().filter(pk=machine.pk, status=MachineStatus.RESERVED, fly_id="").delete()[0])


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
    image: str
    """What it runs because that was current when it was launched; empty when its runs asked for an image of their own.
    """


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
    claims.lose_older(row.pk, boot_id, row.name)
    return CheckIn(
        machine_id=row.pk,
        backend=row.backend,
        queue=row.queue,
        spec_key=row.spec_key,
        isolation=row.spec.get("isolation", "process"),
        life_seconds=row.left.total_seconds(),
        task=row.launched_for.task if row.launched_for else "",
        image="" if row.spec.get("image") else row.image,
    )


def idle(machine_id: int, boot_id: str, runs: int) -> bool:
    """Nothing is ready; the machine waits. False when it is to retire."""
    rows = _rows().filter(
        pk=machine_id, boot_id=boot_id, status__in=(MachineStatus.BUSY, MachineStatus.BOOTED, MachineStatus.IDLE)
    )
    return bool(rows.update(status=MachineStatus.IDLE, seen_at=Now(), runs=runs))


def others(machine_id: int) -> int:
    """Machines of the same queue and spec that could do what this one waits for."""
    working = (MachineStatus.BOOTED, MachineStatus.IDLE, MachineStatus.BUSY)
    mine = _rows().filter(pk=machine_id)
    lane = {name: mine.values(name)[:1] for name in ("backend", "queue", "spec_key")}
    return _rows().filter(status__in=working, **lane).exclude(pk=machine_id).count()


def leaves(machine_id: int, boot_id: str, runs: int, reason: str) -> bool:
    """The runner is about to exit: → RETIRING. It counts as a machine until Fly says that it is gone."""
    rows = _rows().filter(pk=machine_id, boot_id=boot_id).exclude(status=MachineStatus.GONE)
    asked = When(status=MachineStatus.RETIRING, then=F("reason"))  # whoever asked it to said why
    why = Case(asked, default=Value(reason), output_field=TextField())
    return bool(rows.update(status=MachineStatus.RETIRING, seen_at=Now(), runs=runs, reason=why))


def retire(machine: Machine, reason: str, *, unborn: bool = False) -> bool:
    """The machine is given up; it may claim nothing more. `unborn`: only if it has not checked in meanwhile."""
    rows = _rows().filter(pk=machine.pk).exclude(status__in=(MachineStatus.GONE, MachineStatus.RETIRING))
    if unborn:
        rows = rows.filter(booted_at=None)
    return bool(rows.update(status=MachineStatus.RETIRING, reason=reason))


def gone(machine: Machine, *, state: str, exit_event: dict[str, Any] | None, reason: str = "") -> bool:
    """Fly says that the machine does not exist any more: → GONE."""
    changes: dict[str, Any] = {"status": MachineStatus.GONE, "state": state, "gone_at": Now(), "exit_event": exit_event}
    if reason and not machine.reason:
        changes["reason"] = reason
    return bool(_rows().filter(pk=machine.pk).exclude(status=MachineStatus.GONE).update(**changes))


def seen(machine: Machine, state: str) -> None:
    """Note Fly's state where it changed, and when it was first `started`."""
    rows = _rows().filter(pk=machine.pk)
    rows.exclude(state=state).update(state=state)
    if state == "started" and machine.started_at is None:
        rows.filter(started_at=None).update(started_at=Now())


def live() -> list[Machine]:
    """Machines that are not gone."""
    return list(_rows().exclude(status=MachineStatus.GONE).order_by("id"))


def unlaunched() -> list[Machine]:
    """Reserved machines whose create call nobody is making: a dispatcher died between the two."""
    abandoned = Q(requested_at__isnull=True, reserved_at__lt=Now() - timedelta(seconds=15)) | Q(
        requested_at__lt=Now() - timedelta(seconds=90)
    )
    return list(_rows().filter(abandoned, status=MachineStatus.RESERVED))


def overdue() -> list[Machine]:
    """Machines past their deadline."""
    return list(_rows().filter(deadline_at__lt=Now()).exclude(status=MachineStatus.GONE))


def unborn(boot_seconds: float) -> list[tuple[Machine, float]]:
    """Machines that have not checked in, with the seconds since Fly said `started`; -1.0 when it never did.

    Those that Fly has not started are named only when their create call is `boot_seconds` ago.
    """
    silent = _rows().filter(booted_at=None, requested_at__isnull=False).exclude(status=MachineStatus.GONE)
    late = silent.filter(Q(started_at__isnull=False) | Q(requested_at__lt=Now() - timedelta(seconds=boot_seconds)))
    aged = late.annotate(age=Now() - F("started_at"))
    return [(row, row.age.total_seconds() if row.age is not None else -1.0) for row in aged]


def containers() -> list[Machine]:
    """The machines whose image is not ours, and which are not gone: somebody outside has to look after them."""
    rows = _rows().exclude(status__in=(MachineStatus.RESERVED, MachineStatus.GONE)).exclude(fly_id="")
    return list(rows.filter(spec__container__isnull=False).order_by("id"))


def take(machine: Machine, boot_id: str) -> float | None:
    """CREATED → BOOTED for the one dispatcher that looks after it; the seconds that it may live. None: too late."""
    free = _rows().filter(pk=machine.pk, status=MachineStatus.CREATED, boot_id="", deadline_at__gt=Now())
    if not free.update(status=MachineStatus.BOOTED, boot_id=boot_id, booted_at=Now(), seen_at=Now(), state="started"):
        return None
    row = _rows().annotate(left=F("deadline_at") - Now()).get(pk=machine.pk)
    return float(row.left.total_seconds())


def abandoned(machine: Machine, alive: Collection[str]) -> bool:
    """Whether nobody looks after the machine: its boot id is none of those `alive`, and no claim lease holds."""
    running = Q(status=AttemptStatus.RUNNING, run__lease_expires_at__gt=Now())
    return machine.boot_id not in alive and not machine.attempts.using(sql.alias()).filter(running).exists()


def has_app(app: str) -> bool:
    """Whether a machine was ever asked for in this app."""
    return _rows().filter(app=app).exists()


def other_images(image: str) -> list[Machine]:
    """Machines whose image is not the current one, and whose runs did not ask for another."""
    working = (MachineStatus.CREATED, MachineStatus.BOOTED, MachineStatus.IDLE, MachineStatus.BUSY)
    rows = _rows().filter(status__in=working).exclude(image=image)
    return [row for row in rows if "image" not in row.spec]


def get(machine_id: int | None) -> Machine | None:
    """The row, or None."""
    return None if machine_id is None else _rows().filter(pk=machine_id).first()


def mute(seconds: float) -> list[Machine]:
    """Machines that execute nothing and have said nothing for so many seconds: they wait for work, have just checked
    in, or are to leave."""
    since = Now() - timedelta(seconds=seconds)
    waiting = (MachineStatus.IDLE, MachineStatus.BOOTED, MachineStatus.RETIRING)
    return [
        row
        for row in _rows().filter(status__in=waiting, seen_at__lt=since).order_by("pk")
        if row.status != MachineStatus.RETIRING or not row.attempts.filter(status=AttemptStatus.RUNNING).exists()
    ]


def ever_claimed(machine: Machine) -> bool:
    """Whether it came as far as claiming a run."""
    return machine.attempts.exists()


def strays(names: list[str], age: timedelta) -> dict[str, str]:
    """Which of these machines should not exist, and why: no row, or one that has been gone for so long."""
    rows = dict(_rows().filter(name__in=names).values_list("name", "status"))
    ended = _rows().filter(name__in=names, status=MachineStatus.GONE, gone_at__lt=Now() - age)
    missing = {name: NO_ROW for name in names if name not in rows}
    return missing | dict.fromkeys(ended.values_list("name", flat=True), "its row says that it is gone")


def settled(machine: Machine) -> bool:
    """Whether the API ought to know the machine by now."""
    return _rows().filter(pk=machine.pk, created_at__lt=Now() - SETTLED).exists()


def checked_in_with(image: str) -> int:
    """How many machines of this image have ever come up."""
    return _rows().filter(image=image, booted_at__isnull=False).count()


def named(names: list[str]) -> dict[str, Machine]:
    """The rows of these machines, by name."""
    return {row.name: row for row in _rows().filter(name__in=names)}


@dataclass(frozen=True)
class Holding:
    """A run that a machine is at."""

    run_id: uuid.UUID
    task: str
    lost_attempts: int


def holding(machine_id: int) -> list[Holding]:
    """What a machine is at, by its attempts."""
    rows = Attempt.objects.using(sql.alias()).filter(machine_id=machine_id, status=AttemptStatus.RUNNING)
    return [Holding(*row) for row in rows.values_list("run_id", "run__task", "run__lost_attempts").order_by("pk")]
