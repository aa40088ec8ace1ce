"""Queues: count machines and reserve more under the queue's lock, and say why runs wait."""

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Avg, Count, Exists, F, OuterRef, Q
from django.db.models.functions import Now
from django.utils.text import slugify

from machinequeue import demand
from machinequeue.lifecycle import AttemptStatus, MachineStatus
from machinequeue.models import Attempt, Machine, Queue, TaskProfile
from machinequeue.records import runs, sql

EVERY_QUEUE = ""
"""Name of the row whose lock guards the cap over all queues."""

RECENT = 20
"""Machines whose boot times are averaged."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What machines of a group are to be, and the caps."""

    app: str
    image: str
    region: str
    max_of_queue: int
    max_of_all: int
    life_seconds: float


@dataclass(frozen=True)
class Reservation:
    """The machines reserved, and why not more."""

    machines: list[Machine]
    reason: str
    idle: int


def reserve(group: runs.Group, wish: Wish) -> Reservation:
    """Reserve as many machines as the group's demand asks for and the caps allow.

    Counting and inserting happen under row locks, so any number of dispatchers cannot launch for the same demand.
    """
    database = sql.alias()
    _ensure(group)
    with transaction.atomic(using=database):
        queue = _lock(group)
        waiting = runs.due().filter(backend=group.backend, queue=group.queue, spec_key=group.spec_key)
        due = waiting.count()
        if due and Queue.objects.using(database).filter(pk=queue.pk, launch_after__gt=Now()).exists():
            return Reservation([], queue.reasons.get(group.spec_key, ""), 0)
        boot_seconds = _boot_seconds(group)
        supply = _supply(group, boot_seconds)
        plan = demand.plan(
            due,
            supply,
            run_seconds=_run_seconds(group, list(waiting.values_list("task", flat=True).distinct()[:5])),
            boot_seconds=boot_seconds,
            max_of_queue=wish.max_of_queue,
            max_of_all=wish.max_of_all,
        )
        machines = [_insert(group, wish) for _ in range(plan.launch)]
        _explain(queue, group.spec_key, plan.reason)
    return Reservation(machines, plan.reason, supply.idle if due else 0)


def reserve_one(group: runs.Group, wish: Wish) -> Machine:
    """Reserve a machine whatever the demand says."""
    return _insert(group, wish)


def _ensure(group: runs.Group) -> None:
    rows = Queue.objects.using(sql.alias())
    if rows.filter(Q(backend=group.backend, name=group.queue) | Q(name=EVERY_QUEUE)).count() < 2:
        rows.bulk_create(
            [Queue(backend="", name=EVERY_QUEUE), Queue(backend=group.backend, name=group.queue)], ignore_conflicts=True
        )


def _lock(group: runs.Group) -> Queue:
    # An UPDATE locks on SQLite too, where SELECT FOR UPDATE does nothing. Always in this order.
    rows = Queue.objects.using(sql.alias())
    rows.filter(backend="", name=EVERY_QUEUE).update(failures=F("failures"))
    rows.filter(backend=group.backend, name=group.queue).update(failures=F("failures"))
    return rows.get(backend=group.backend, name=group.queue)


def _supply(group: runs.Group, boot_seconds: float | None) -> demand.Supply:
    # Who has been at one run for longer than a boot is not about to be free, whatever the runs that wait take.
    since = Now() - timedelta(seconds=boot_seconds or 0.0)
    at_it = Attempt.objects.filter(machine=OuterRef("pk"), status=AttemptStatus.RUNNING, claimed_at__lt=since)
    coming = (MachineStatus.RESERVED, MachineStatus.CREATED, MachineStatus.BOOTED)
    of_queue = Q(backend=group.backend, queue=group.queue)
    mine = of_queue & Q(spec_key=group.spec_key)
    counts = (
        Machine.objects.using(sql.alias())
        .exclude(status=MachineStatus.GONE)
        .aggregate(
            coming=Count("id", filter=mine & Q(status__in=coming)),
            idle=Count("id", filter=mine & Q(status=MachineStatus.IDLE)),
            busy=Count("id", filter=mine & Q(~Exists(at_it), status=MachineStatus.BUSY)),
            of_queue=Count("id", filter=of_queue),
            of_all=Count("id"),
        )
    )
    return demand.Supply(**counts)


def _run_seconds(group: runs.Group, tasks: list[str]) -> float | None:
    if group.spec.get("isolation") == "machine":
        return None  # no machine takes a second run, so each needs its own
    usual: float | None = (
        TaskProfile.objects.using(sql.alias()).filter(task__in=tasks).aggregate(usual=Avg("run_seconds"))["usual"]
    )
    return usual


def _boot_seconds(group: runs.Group) -> float | None:
    booted = (
        Machine.objects.using(sql.alias())
        .filter(backend=group.backend, queue=group.queue, booted_at__isnull=False, requested_at__isnull=False)
        .order_by("-id")
        .values_list("requested_at", "booted_at")[:RECENT]
    )
    seconds = [(up - asked).total_seconds() for asked, up in booted if up and asked]
    return sum(seconds) / len(seconds) if seconds else None


def _insert(group: runs.Group, wish: Wish) -> Machine:
    return Machine.objects.using(sql.alias()).create(
        name=f"mq-{slugify(group.queue)[:20] or 'queue'}-{secrets.token_hex(6)}",
        app=wish.app,
        image=wish.image,
        region=wish.region,
        backend=group.backend,
        queue=group.queue,
        spec=group.spec,
        spec_key=group.spec_key,
        launched_for_id=group.first,
        deadline_at=Now() + timedelta(seconds=wish.life_seconds),
    )


def _explain(queue: Queue, spec_key: str, reason: str) -> None:
    if queue.reasons.get(spec_key) != reason:
        queue.reasons = {**queue.reasons, spec_key: reason}
        queue.save(using=sql.alias(), update_fields=["reasons"])


def launch_failed(machine: Machine, reason: str, *, pause_seconds: float) -> None:
    """Note why a launch failed, and launch nothing more of the queue for a while."""
    database = sql.alias()
    with transaction.atomic(using=database):
        rows = Queue.objects.using(database).filter(backend=machine.backend, name=machine.queue)
        rows.update(failures=F("failures") + 1, launch_after=Now() + timedelta(seconds=pause_seconds))
        if (queue := rows.first()) is not None:
            _explain(queue, machine.spec_key, reason)


def launched(machine: Machine) -> None:
    """Forget failed launches of the queue."""
    rows = Queue.objects.using(sql.alias()).filter(backend=machine.backend, name=machine.queue, failures__gt=0)
    rows.update(failures=0, launch_after=None)


def failures(machine: Machine) -> int:
    """Launches of the machine's queue that failed in a row."""
    row = Queue.objects.using(sql.alias()).filter(backend=machine.backend, name=machine.queue).first()
    return row.failures if row is not None else 0


def wake_idle(queue: str) -> None:
    """Tell runners that wait for work on PostgreSQL; on SQLite they look by themselves."""
    if sql.is_postgresql(connection := sql.connection()):
        sql.execute(connection, "SELECT pg_notify('machinequeue', %s)", [queue])


def set_paused(pk: Any, *, paused: bool) -> bool:
    """Pause a queue, or let it go on. False when it was so already."""
    rows = Queue.objects.using(sql.alias()).filter(pk=pk, paused_at__isnull=paused)
    return bool(rows.update(paused_at=Now() if paused else None))
