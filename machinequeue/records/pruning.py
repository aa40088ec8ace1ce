"""Retention: delete finished runs, and machines that are gone, when they are old enough.

Runs are looked at in the order of their ids, which is that of their enqueues, a few at a time, from where the last
look ended. So a step costs the same however many rows there are, needs no index of its own, and holds no lock for long.
A run takes its attempts and their output along; a machine stays as long as an attempt refers to it.
"""

import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

from django.db import transaction
from django.db.models import Exists, OuterRef, ProtectedError, Q, QuerySet, RestrictedError
from django.db.models.functions import Now

from machinequeue import conf
from machinequeue.lifecycle import FINISHED, MachineStatus, RunStatus
from machinequeue.models import Attempt, Circuit, Machine, OutputChunk, OutputPiece, TaskRun
from machinequeue.records import dispatchers, runs, sql

BATCH = 200
"""Rows that one step looks at, of each kind; so many may be deleted."""
REST_SECONDS = 600.0
"""After the last row was looked at, until the first is again."""
FIRST = uuid.UUID(int=0)


@dataclass(frozen=True)
class Ages:
    """How long what has ended is kept, by how it ended; None: for ever."""

    successful: timedelta | None
    failed: timedelta | None
    """Failed, cancelled, expired."""
    machines: timedelta | None

    @classmethod
    def of_settings(cls) -> Self:
        """What the settings say."""
        read = conf.settings()
        days = (read.keep_successful_days, read.keep_failed_days, read.keep_machines_days)
        return cls(*(timedelta(days=each) if each else None for each in days))

    @classmethod
    def all_of(cls, age: timedelta) -> Self:
        """The same for all."""
        return cls(age, age, age)


@dataclass(frozen=True)
class Pruned:
    """How many were deleted, or would be."""

    runs: int = 0
    machines: int = 0

    def __add__(self, other: "Pruned") -> "Pruned":
        return Pruned(self.runs + other.runs, self.machines + other.machines)


@dataclass
class Pruner:
    """`step()` deletes a little; call it again and again."""

    ages: Ages | None = None
    """None: what the settings say."""
    done: bool = False
    """Whether the last row was looked at."""
    _run: uuid.UUID = FIRST
    _machine: int = 0
    _runs_done: bool = False
    _machines_done: bool = False
    _rests_until: float = field(default=0.0)

    def step(self) -> Pruned:
        """Look at the next rows and delete those that are old enough. Nothing at all for a while after the last."""
        if time.monotonic() < self._rests_until:
            return Pruned()
        ages = self.ages or Ages.of_settings()
        pruned = Pruned(self._prune_runs(ages), self._prune_machines(ages))
        self.done = self._runs_done and self._machines_done
        if self.done:
            _forget_the_rest(ages)
            self._runs_done = self._machines_done = False
            self._run, self._machine = FIRST, 0
            self._rests_until = time.monotonic() + REST_SECONDS
        return pruned

    def _prune_runs(self, ages: Ages) -> int:
        kept = [age for age in (ages.successful, ages.failed) if age is not None]
        if self._runs_done or not kept:
            self._runs_done = True
            return 0
        bound = _first_id_at(runs.database_now() - min(kept))
        rows = TaskRun.objects.using(sql.alias()).filter(pk__gt=self._run, pk__lt=bound)
        looked = list(rows.order_by("pk").values_list("pk", flat=True)[:BATCH])
        self._runs_done = len(looked) < BATCH
        if not looked:
            return 0
        self._run = looked[-1]
        return _delete(_old_runs(ages).filter(pk__in=looked))

    def _prune_machines(self, ages: Ages) -> int:
        if self._machines_done or ages.machines is None:
            self._machines_done = True
            return 0
        rows = Machine.objects.using(sql.alias()).filter(pk__gt=self._machine)
        looked = list(rows.order_by("pk").values_list("pk", "reserved_at")[:BATCH])
        # Machines are reserved in the order of their ids: those after a young one are young.
        young = bool(looked) and looked[-1][1] > runs.database_now() - ages.machines
        self._machines_done = young or len(looked) < BATCH
        if not looked:
            return 0
        self._machine = looked[-1][0]
        return _delete(_old_machines(ages).filter(pk__in=[pk for pk, _ in looked]))


def count(ages: Ages) -> Pruned:
    """How many are old enough now. Machines that only old runs refer to count too: they go with them."""
    going = _old_runs(ages).values("pk")
    kept = Attempt.objects.using(sql.alias()).filter(machine=OuterRef("pk")).exclude(run__in=going)
    return Pruned(_old_runs(ages).count(), _gone_machines(ages).exclude(Exists(kept)).count())


def _first_id_at(moment: datetime) -> uuid.UUID:
    """The smallest id that a run enqueued at this time can have: uuid7 begins with milliseconds."""
    return uuid.UUID(int=int(moment.timestamp() * 1000) << 80)


def _old_runs(ages: Ages) -> QuerySet[TaskRun]:
    """Finished for long enough. Not those that a machine was launched for which still exists."""
    old = Q(pk__in=())
    if ages.successful is not None:
        old |= Q(status=RunStatus.SUCCESSFUL, finished_at__lt=Now() - ages.successful)
    if ages.failed is not None:
        old |= Q(status__in=FINISHED - {RunStatus.SUCCESSFUL}, finished_at__lt=Now() - ages.failed)
    living = Machine.objects.filter(launched_for=OuterRef("pk")).exclude(status=MachineStatus.GONE)
    return TaskRun.objects.using(sql.alias()).filter(old).exclude(Exists(living))


def _gone_machines(ages: Ages) -> QuerySet[Machine]:
    rows = Machine.objects.using(sql.alias())
    if ages.machines is None:
        return rows.none()
    return rows.filter(status=MachineStatus.GONE, gone_at__lt=Now() - ages.machines)


def _old_machines(ages: Ages) -> QuerySet[Machine]:
    """Gone for long enough, and no attempt refers to them."""
    return _gone_machines(ages).exclude(Exists(Attempt.objects.filter(machine=OuterRef("pk"))))


def _delete(rows: QuerySet[Any]) -> int:
    """Delete these rows, as long as they are what they were when they were looked at; how many.

    A row that somebody else holds is left for the next time: they may be about to retry it.
    """
    with transaction.atomic(using=sql.alias()):
        doomed = list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True))
        own = rows.model._default_manager.using(sql.alias())
        try:
            _delete_all(own.filter(pk__in=doomed))
        except (ProtectedError, RestrictedError):
            return sum(_delete_unprotected(own.filter(pk=pk)) for pk in doomed)
    return len(doomed)


def _delete_all(rows: QuerySet[Any]) -> None:
    """Delete these rows and what goes along, or nothing."""
    with transaction.atomic(using=sql.alias()):
        if rows.model is TaskRun:
            attempts = Attempt.objects.using(sql.alias()).filter(run__in=rows.values("pk"))
            for output in (OutputPiece, OutputChunk):
                # Where a receiver listens to deletes of all models, Django would load every row first: all the bytes.
                output.objects.using(sql.alias()).filter(attempt__in=attempts.values("pk"))._raw_delete(sql.alias())
        rows.delete()


def _delete_unprotected(row: QuerySet[Any]) -> int:
    """Delete a row unless one of the project's own refers to it that says it must not go."""
    try:
        _delete_all(row)
    except (ProtectedError, RestrictedError):
        return 0
    return 1


def _forget_the_rest(ages: Ages) -> None:
    """Dispatchers that are silent, and failures of launches that nobody tried again."""
    dispatchers.forget()
    if ages.machines is not None:
        old = Circuit.objects.using(sql.alias()).filter(opened_at=None, failed_at__lt=Now() - ages.machines)
        old.filter(next_at__lt=Now()).delete()


def prune_all(ages: Ages) -> Pruned:
    """Everything that is old enough now, in small steps."""
    pruner, pruned = Pruner(ages), Pruned()
    while not pruner.done:
        pruned += pruner.step()
    # The runs that went may have been the last to refer to a machine that was looked at before.
    again = Pruner(replace(ages, successful=None, failed=None))
    while not again.done:
        pruned += again.step()
    return pruned
