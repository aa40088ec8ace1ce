"""What health and metrics ask of the rows: one bounded question each, which grows with work that waits, never with
what is finished. Ages are seconds by the database's clock.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count, F, Max, Min, Q, QuerySet
from django.db.models.functions import Now

from machinequeue.lifecycle import BackupKind, BackupStatus, MachineStatus, RunStatus
from machinequeue.models import (
    ApiAnswer,
    Attempt,
    Backup,
    Circuit,
    Dispatcher,
    Machine,
    Queue,
    RestoreDrill,
    TaskProfile,
    TaskRun,
)
from machinequeue.records import runs, sql

MOST_NAMED = 20
NEWEST_ATTEMPTS = 2000
"""How far back the outcomes of attempts are looked at."""


def _age(rows: QuerySet[Any], moment: str) -> float | None:
    """Seconds since the latest moment of these rows; None without one."""
    newest = rows.filter(**{f"{moment}__isnull": False}).order_by(f"-{moment}")
    age = newest.annotate(age=Now() - F(moment)).values_list("age", flat=True).first()
    return None if age is None else max(age.total_seconds(), 0.0)


def dispatchers(silent: timedelta = runs.DISPATCHER_SILENT) -> tuple[int, float | None]:
    """How many were seen lately, and seconds since any was; None when there is none."""
    rows = Dispatcher.objects.using(sql.alias())
    return rows.filter(seen_at__gte=Now() - silent).count(), _age(rows, "seen_at")


@dataclass(frozen=True)
class Backlog:
    """Runs that are due."""

    due: int
    seconds: float
    """For how long the oldest has been due."""
    queue: str
    """Its queue."""
    reason: str
    """Why it waits, as the dispatcher wrote it; may be empty."""


def backlog() -> Backlog | None:
    """The runs that are due in queues that are not paused; None when there is none."""
    rows = runs.due()
    oldest = rows.annotate(age=Now() - F("run_after")).order_by("run_after").first()
    if oldest is None:
        return None
    queue = Queue.objects.using(sql.alias()).filter(backend=oldest.backend, name=oldest.queue).first()
    reason = queue.reasons.get(oldest.spec_key, "") if queue is not None else ""
    return Backlog(rows.count(), oldest.age.total_seconds(), oldest.queue, reason)


@dataclass(frozen=True)
class Api:
    """How it stands with the Machines API."""

    answered: float | None
    """Seconds since it answered; None when it never did."""
    error: str
    """What went wrong since; empty when nothing did."""


def api(app: str) -> Api | None:
    """What dispatchers of this app noted; None when none ever asked."""
    rows = ApiAnswer.objects.using(sql.alias()).filter(app=app)
    row = rows.annotate(age=Now() - F("answered_at")).first()
    return None if row is None else Api(row.age.total_seconds() if row.age is not None else None, row.error)


@dataclass(frozen=True)
class Stuck:
    """A machine that should not be there, or not like this."""

    name: str
    why: str
    """late: past its deadline; unborn: never checked in; silent: it says nothing of the run that it holds."""
    seconds: float
    """For how long it is so."""


def stuck(*, overdue: float, boot: float, silence: float) -> list[Stuck]:
    """Machines that are so many seconds past their deadline, their create call without check-in, or their claim lease.

    At most 20 of each.
    """
    live = Machine.objects.using(sql.alias()).exclude(status=MachineStatus.GONE)
    unborn = live.filter(booted_at=None).exclude(status=MachineStatus.RETIRING)
    holding = TaskRun.objects.using(sql.alias()).filter(
        status=RunStatus.RUNNING, attempts__epoch=F("epoch"), attempts__machine__isnull=False
    )
    found = [
        *_stuck(live, "late", "deadline_at", overdue, "name"),
        *_stuck(unborn, "unborn", "requested_at", boot, "name"),
        *_stuck(holding, "silent", "lease_expires_at", silence, "attempts__machine__name"),
    ]
    first: dict[str, Stuck] = {}
    for each in found:
        first.setdefault(each.name, each)
    return list(first.values())


def _stuck(rows: QuerySet[Any], why: str, moment: str, seconds: float, name: str) -> list[Stuck]:
    past = rows.filter(**{f"{moment}__lt": Now() - timedelta(seconds=seconds)})
    aged = past.annotate(age=Now() - F(moment)).order_by(moment).values_list(name, "age")[:MOST_NAMED]
    return [Stuck(machine, why, age.total_seconds()) for machine, age in aged]


# Backups --------------------------------------------------------------------------------------------------------------


def backed_up() -> list[str]:
    """The databases of which a backup was ever begun."""
    rows = Backup.objects.using(sql.alias()).filter(kind=BackupKind.DATABASE)
    return sorted(set(rows.order_by().values_list("database", flat=True).distinct()))


def size_before(backup: Backup) -> int | None:
    """Bytes of the backup that succeeded before this one, whether it is still stored or not."""
    rows = Backup.objects.using(sql.alias()).filter(kind=backup.kind, database=backup.database)
    earlier = rows.filter(status=BackupStatus.SUCCEEDED, pk__lt=backup.pk).order_by("-pk")
    return earlier.values_list("size_bytes", flat=True).first()


def drill_age(drill: RestoreDrill) -> float:
    """Seconds since the drill ended."""
    return _age(RestoreDrill.objects.using(sql.alias()).filter(pk=drill.pk), "finished_at") or 0.0


# For metrics ----------------------------------------------------------------------------------------------------------


def runs_by_queue() -> list[tuple[str, str, str, int]]:
    """(backend, queue, status, how many) of the runs that are not finished."""
    rows = TaskRun.objects.using(sql.alias()).filter(status__in=(RunStatus.READY, RunStatus.RUNNING))
    return _counted(rows, "backend", "queue", "status")


def due_by_queue() -> list[tuple[str, str, int, float]]:
    """(backend, queue, due runs, seconds for which the oldest has been due)."""
    counted = runs.due().values("backend", "queue").annotate(due=Count("id"), age=Now() - Min("run_after"))
    rows = counted.order_by("backend", "queue").values_list("backend", "queue", "due", "age")
    return [(backend, queue, due, age.total_seconds()) for backend, queue, due, age in rows]


def machines_by_queue() -> list[tuple[str, str, str, int]]:
    """(backend, queue, status, how many) of the machines that are not gone."""
    rows = Machine.objects.using(sql.alias()).exclude(status=MachineStatus.GONE)
    return _counted(rows, "backend", "queue", "status")


def _counted(rows: QuerySet[Any], *names: str) -> list[tuple[Any, ...]]:
    return list(rows.values(*names).annotate(many=Count("id")).order_by(*names).values_list(*names, "many"))


@dataclass(frozen=True)
class Ended:
    """An attempt that ended."""

    backend: str
    queue: str
    status: str
    seconds: float
    """From its claim to its end."""
    waited: float
    """From when its run was due to its claim; 0 for a run that was due later again, as for a retry."""


def ended(within: float) -> list[Ended]:
    """The attempts that ended within so many seconds, of the newest 2000."""
    rows = Attempt.objects.using(sql.alias())
    newest = rows.aggregate(newest=Max("id"))["newest"] or 0
    recent = rows.filter(id__gt=newest - NEWEST_ATTEMPTS, finished_at__gte=Now() - timedelta(seconds=within))
    facts = recent.annotate(took=F("finished_at") - F("claimed_at"), waited=F("claimed_at") - F("run__run_after"))
    listed = facts.values_list("run__backend", "run__queue", "status", "took", "waited")
    return [
        Ended(backend, queue, status, max(took.total_seconds(), 0.0), max(waited.total_seconds(), 0.0))
        for backend, queue, status, took, waited in listed
    ]


def succeeded_by_task() -> list[tuple[str, int, float]]:
    """(task, runs that ever succeeded, usual seconds), of the tasks that run most."""
    rows = TaskProfile.objects.using(sql.alias()).order_by("-runs", "task")
    return list(rows.values_list("task", "runs", "run_seconds")[:200])


def circuits() -> list[tuple[str, bool, int]]:
    """(kind, open, how many)."""
    rows = Circuit.objects.using(sql.alias())
    opened = rows.values("kind").annotate(open=Count("id", filter=Q(opened_at__isnull=False)), every=Count("id"))
    return [
        pair
        for kind, is_open, every in opened.order_by("kind").values_list("kind", "open", "every")
        for pair in ((kind, True, is_open), (kind, False, every - is_open))
    ]
