"""Profiles: what runs of a task usually take, and the memory that it was found to need."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Now

from machinequeue import conf
from machinequeue.lifecycle import RunStatus
from machinequeue.models import TaskProfile, TaskRun
from machinequeue.records import sql

MODEST_SHARE = 0.6
"""A peak below this share of what was too little would have fitted in it: the rest is the supervisor's and a margin."""
MODEST_RUNS = 20
"""So many modest runs in a row make a task forget its learned memory."""


def learn(task: str, runs: int, seconds: float, peak_memory_mb: int | None) -> None:
    """Mix what runs of a task took into its profile; `seconds` is their sum. Recent runs weigh more.

    Learned memory is forgotten when peaks stay low.
    """
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
        if peak_memory_mb is not None:
            _relax(task, runs, peak_memory_mb)


def _relax(task: str, runs: int, peak_memory_mb: int) -> None:
    grown = TaskProfile.objects.using(sql.alias()).filter(task=task, memory_mb__isnull=False)
    modest = Q(outgrown_mb__gt=peak_memory_mb / MODEST_SHARE)
    grown.update(modest_runs=Case(When(modest, then=F("modest_runs") + runs), default=Value(0)))
    grown.filter(modest_runs__gte=MODEST_RUNS).update(memory_mb=None, outgrown_mb=None, modest_runs=0)


def outgrew(task: str, spec: Mapping[str, Any], bigger_mb: int) -> None:
    """A run of the task ran out of memory with this spec: runs that wait, and later ones, get more."""
    rows = TaskProfile.objects.using(sql.alias())
    rows.bulk_create([TaskProfile(task=task, run_seconds=0.0)], ignore_conflicts=True)
    more = Q(memory_mb__isnull=True) | Q(memory_mb__lt=bigger_mb)
    rows.filter(more, task=task).update(
        memory_mb=bigger_mb, outgrown_mb=spec["memory_mb"], modest_runs=0, updated_at=Now()
    )


def forget_memory(task: str) -> bool:
    """Runs of the task get what it asks for again. False when nothing was learned."""
    rows = TaskProfile.objects.using(sql.alias()).filter(task=task, memory_mb__isnull=False)
    return bool(rows.update(memory_mb=None, outgrown_mb=None, modest_runs=0))


def fit() -> int:
    """Give READY runs the memory that their tasks were found to need, within each run's own bound; how many."""
    database, changed = sql.alias(), 0
    for task, memory_mb in (
        TaskProfile.objects.using(database).filter(memory_mb__isnull=False).values_list("task", "memory_mb")
    ):
        ready = TaskRun.objects.using(database).filter(task=task, status=RunStatus.READY)
        for key, spec in ready.values_list("spec_key", "spec").distinct().order_by():
            grown = _grown(spec, memory_mb or 0)
            if grown is not None:
                # The key is a hash of the whole spec but for its bound.
                same = ready.filter(spec_key=key, spec__max_memory_mb=spec["max_memory_mb"])
                changed += same.update(spec=grown, spec_key=conf.spec_key(grown))
    return changed


def _grown(spec: dict[str, Any], memory_mb: int) -> dict[str, Any] | None:
    """The spec with that memory or the most that it allows; None when it has that."""
    grown: dict[str, Any] | None = None
    while (grown or spec)["memory_mb"] < memory_mb and (more := conf.bigger(grown or spec)) is not None:
        grown = more
    return grown


def long_ones(seconds: float) -> list[tuple[str, float, dict[str, Any]]]:
    """(task, usual seconds, the spec of its newest run) of the tasks that usually take at least so long."""
    database = sql.alias()
    found = []
    for profile in TaskProfile.objects.using(database).filter(run_seconds__gte=seconds).order_by("-run_seconds"):
        newest = TaskRun.objects.using(database).filter(task=profile.task).order_by("-id").first()
        if newest is not None:
            found.append((profile.task, profile.run_seconds, newest.spec))
    return found
