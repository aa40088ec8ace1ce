"""Queues: count machines and reserve more under the queue's lock, and say why runs wait."""

import secrets
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Avg, Count, F, Min, OuterRef, Q, Subquery
from django.db.models.functions import Now
from django.utils.text import slugify

from machinequeue import demand
from machinequeue.lifecycle import AttemptStatus, MachineStatus
from machinequeue.models import Attempt, Machine, Queue, TaskProfile
from machinequeue.records import circuits, runs, sql

EVERY_QUEUE = ""
"""Name of the row whose lock guards the cap over all queues."""

FROZEN = timedelta(seconds=30)
"""A machine that should have said something within this time is not counted on."""
KEPT_REASONS = 50

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
    max_of_containers: int | None = None
    """For a machine whose code is not ours: so many are looked after, over all queues."""


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
    _ensure(group.backend, group.queue)
    with transaction.atomic(using=database):
        queue = _lock(group)
        # Machines before runs: one that claims between the two must not leave its run counted and itself not.
        boot_seconds = _boot_seconds(group)
        supply = _supply(group, boot_seconds)
        waiting = runs.due().filter(backend=group.backend, queue=group.queue, spec_key=group.spec_key)
        due = waiting.count()
        if due and Queue.objects.using(database).filter(pk=queue.pk, launch_after__gt=Now()).exists():
            return Reservation([], queue.reasons.get(group.spec_key, ""), 0)
        plan = demand.plan(
            due,
            supply,
            run_seconds=_run_seconds(group, list(waiting.values_list("task", flat=True).distinct()[:5])),
            boot_seconds=boot_seconds,
            max_of_queue=wish.max_of_queue,
            max_of_all=wish.max_of_all,
            queue=group.queue,
        )
        plan = _looked_after(plan, wish)
        allowed, reason = circuits.admit(wish.image, group.spec_key) if plan.launch else (None, "")
        launch = plan.launch if allowed is None else min(plan.launch, allowed)
        machines = [_insert(group, wish) for _ in range(launch)]
        if plan.short > 0 and not plan.launch:
            reason = circuits.holding(wish.image, group.spec_key)
            if not reason:  # else nobody would take the room
                _make_room(group, plan.short, only_queue=supply.of_queue >= wish.max_of_queue)
        _explain(queue, group.spec_key, reason or plan.reason)
    return Reservation(machines, reason or plan.reason, supply.idle if due else 0)


def _looked_after(plan: demand.Plan, wish: Wish) -> demand.Plan:
    """No more than somebody takes up: one that waits for that costs money, and is given up as if it did not boot."""
    if wish.max_of_containers is None or not plan.launch:
        return plan
    rows = Machine.objects.using(sql.alias()).exclude(status=MachineStatus.GONE)
    taken = rows.filter(spec__container__isnull=False).count()
    launch = max(0, min(plan.launch, wish.max_of_containers - taken))
    if launch:
        return replace(plan, launch=launch)
    at_once = f"{taken} of {wish.max_of_containers} container runs that dispatchers look after at once"
    return demand.Plan(0, f"{at_once} (CONTAINER_THREADS of each)")


def keep(group: runs.Group, wish: Wish, least: int, margin_seconds: float) -> Reservation:
    """Reserve what is missing of the `least` machines that a queue keeps waiting; those that age do not count."""
    _ensure(group.backend, group.queue)
    with transaction.atomic(using=sql.alias()):
        queue = _lock(group)
        if Queue.objects.using(sql.alias()).filter(pk=queue.pk, launch_after__gt=Now()).exists():
            return Reservation([], "", 0)
        rows = Machine.objects.using(sql.alias()).exclude(status=MachineStatus.GONE)
        of_queue = rows.filter(backend=group.backend, queue=group.queue)
        fresh = of_queue.filter(spec_key=group.spec_key, deadline_at__gt=Now() + timedelta(seconds=margin_seconds))
        missing = least - fresh.exclude(status=MachineStatus.RETIRING).count()
        room = min(wish.max_of_queue - of_queue.count(), wish.max_of_all - rows.count())
        if min(missing, room) <= 0:
            return Reservation([], "", 0)
        allowed, reason = circuits.admit(wish.image, group.spec_key)
        launch = min(missing, room) if allowed is None else min(missing, room, allowed)
        return Reservation([_insert(group, wish) for _ in range(launch)], reason, 0)


def _make_room(group: runs.Group, short: int, *, only_queue: bool) -> None:
    """At the cap: machines of other specs whose runs the group's outrank are to retire, idle ones first.

    Those that retire already make room too.
    """
    rows = Machine.objects.using(sql.alias()).exclude(status=MachineStatus.GONE)
    if only_queue:
        rows = rows.filter(backend=group.backend, queue=group.queue)
    needed = short - rows.filter(status=MachineStatus.RETIRING).count()
    working = rows.filter(status__in=(MachineStatus.IDLE, MachineStatus.BUSY)).exclude(
        backend=group.backend, queue=group.queue, spec_key=group.spec_key
    )
    oldest = Min("attempts__claimed_at", filter=Q(attempts__status=AttemptStatus.RUNNING))
    for machine in working.annotate(since=oldest).order_by("-status", "since"):
        if needed <= 0:
            return
        if _outranks(group, machine):
            retire = rows.filter(pk=machine.pk, status=machine.status)
            needed -= retire.update(
                status=MachineStatus.RETIRING, reason=f"makes room for more urgent runs of queue {group.queue}"
            )
            wake_idle(machine.queue)


def _outranks(group: runs.Group, machine: Machine) -> bool:
    line = runs.in_line(machine.backend, machine.queue, machine.spec_key)
    first = line.values_list("priority", "id").first()
    return first is None or (-group.priority, str(group.first)) < (-first[0], str(first[1]))


def reserve_one(group: runs.Group, wish: Wish) -> Machine:
    """Reserve a machine whatever the demand says."""
    return _insert(group, wish)


def _ensure(backend: str, name: str) -> None:
    rows = Queue.objects.using(sql.alias())
    if rows.filter(Q(backend=backend, name=name) | Q(name=EVERY_QUEUE)).count() < 2:
        both = [Queue(backend="", name=EVERY_QUEUE), Queue(backend=backend, name=name)]
        rows.bulk_create(both, ignore_conflicts=True)


def _lock(group: runs.Group) -> Queue:
    # An UPDATE locks on SQLite too, where SELECT FOR UPDATE does nothing. Always in this order.
    rows = Queue.objects.using(sql.alias())
    rows.filter(backend="", name=EVERY_QUEUE).update(failures=F("failures"))
    rows.filter(backend=group.backend, name=group.queue).update(failures=F("failures"))
    return rows.get(backend=group.backend, name=group.queue)


def _supply(group: runs.Group, boot_seconds: float | None) -> demand.Supply:
    # Who has not claimed for longer than a boot is not about to be free, whatever the runs that wait take: it is at a
    # long run, or frozen.
    since = Now() - timedelta(seconds=boot_seconds or 0.0)
    last_claim = Attempt.objects.filter(machine=OuterRef("pk")).order_by("-pk").values("claimed_at")[:1]
    # Idle machines say so every two seconds; who checked in claims, or is idle, at once. Others are frozen.
    coming = Q(status__in=(MachineStatus.RESERVED, MachineStatus.CREATED)) | Q(
        status=MachineStatus.BOOTED, booted_at__gte=Now() - FROZEN
    )
    idle = Q(status=MachineStatus.IDLE, seen_at__gte=Now() - FROZEN)
    of_queue = Q(backend=group.backend, queue=group.queue)
    mine = of_queue & Q(spec_key=group.spec_key)
    counts = (
        Machine.objects.using(sql.alias())
        .exclude(status=MachineStatus.GONE)
        .annotate(last_claim=Subquery(last_claim))
        .aggregate(
            coming=Count("id", filter=mine & coming),
            idle=Count("id", filter=mine & idle),
            busy=Count("id", filter=mine & Q(status=MachineStatus.BUSY, last_claim__gte=since)),
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
        others = {key: text for key, text in queue.reasons.items() if key != spec_key}
        newest = [*others.items()][-KEPT_REASONS:]  # specs come and go with releases
        queue.reasons = {**dict(newest), spec_key: reason}
        queue.save(using=sql.alias(), update_fields=["reasons"])


def explain(lane: tuple[str, str, str], reason: str) -> None:
    """Say why the runs of a (backend, queue, spec key) wait."""
    backend, name, spec_key = lane
    with transaction.atomic(using=sql.alias()):
        _ensure(backend, name)
        rows = Queue.objects.using(sql.alias()).filter(backend=backend, name=name)
        rows.update(failures=F("failures"))  # locks it
        _explain(rows.get(), spec_key, reason)


def launch_failed(machine: Machine, reason: str, *, pause_seconds: float) -> None:
    """Note why a launch failed, and launch nothing more of the queue for a while."""
    _pause(machine, reason, pause_seconds, failures=F("failures") + 1)


def hold(machine: Machine, reason: str, seconds: float) -> None:
    """Launch nothing more of the queue for a moment; nothing failed."""
    _pause(machine, reason, seconds)


def _pause(machine: Machine, reason: str, seconds: float, **changes: Any) -> None:
    database = sql.alias()
    with transaction.atomic(using=database):
        rows = Queue.objects.using(database).filter(backend=machine.backend, name=machine.queue)
        rows.update(launch_after=Now() + timedelta(seconds=seconds), **changes)
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


@dataclass(frozen=True)
class Trouble:
    """A queue that is paused, or whose launches fail: how often in a row, and the newest sentences about it."""

    backend: str
    queue: str
    paused: bool
    failures: int
    reasons: tuple[str, ...]


def troubled() -> list[Trouble]:
    """The queues that launch nothing, or try in vain."""
    rows = Queue.objects.using(sql.alias()).filter(Q(paused_at__isnull=False) | Q(failures__gt=0)).order_by("name")
    return [
        Trouble(row.backend, row.name, row.paused_at is not None, row.failures, tuple(text for text in said if text))
        for row in rows
        for said in [row.reasons.values()]
    ]
