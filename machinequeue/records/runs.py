"""Runs: enqueue them, read them, cancel and retry them."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from django.db import transaction
from django.db.models import Count, Exists, F, Min, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce, Now

from machinequeue.lifecycle import FINISHED, AttemptStatus, MachineStatus, RunStatus
from machinequeue.models import Attempt, Dispatcher, OutputChunk, Queue, TaskRun
from machinequeue.records import sql

try:
    from uuid import uuid7  # type: ignore[attr-defined]  # Python 3.14
except ImportError:
    from uuid_utils.compat import uuid7

DISPATCHER_SILENT = timedelta(seconds=15)
"""A dispatcher that was not seen for so long is not counted on."""


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """What an enqueue writes."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    backend: str
    queue: str
    priority: int
    run_after: datetime | None
    spec: str
    """JSON text."""
    spec_key: str
    timeout: float
    max_attempts: int
    metadata: dict[str, Any] | None = None


_COLUMNS = (
    "id",
    "task",
    "args",
    "kwargs",
    "backend",
    "queue",
    "priority",
    "spec",
    "spec_key",
    "timeout",
    "max_attempts",
)


@lru_cache(maxsize=8)
def _insert(*more: str) -> str:
    columns = (*_COLUMNS, *more)
    values = ", ".join(["%s"] * len(columns))
    return f"INSERT INTO machinequeue_taskrun ({', '.join(columns)}) VALUES ({values})"  # noqa: S608 - names of ours


def create(new: NewRun) -> tuple[uuid.UUID, datetime | None]:
    """Insert one run, READY; its id and when it was. One statement, in the caller's transaction if there is one."""
    connection = sql.connection()
    run_id = uuid7()
    params, more = _params(connection, run_id, new), ["run_after"] if new.run_after is not None else []
    if new.metadata is not None:
        params, more = [*params, sql.dumps(new.metadata)], [*more, "metadata"]
    statement = f"{_insert(*more)} RETURNING enqueued_at"
    row = sql.fetch(connection, statement, params)
    return run_id, sql.read_time(row[0]) if row else None


def _params(connection: Any, run_id: uuid.UUID, new: NewRun) -> list[Any]:
    params = [
        sql.key(connection, run_id),
        new.task,
        sql.dumps(new.args),
        sql.dumps(new.kwargs),
        new.backend,
        new.queue,
        new.priority,
        new.spec,
        new.spec_key,
        new.timeout,
        new.max_attempts,
    ]
    return params if new.run_after is None else [*params, sql.moment(connection, new.run_after)]


def create_many(runs: Sequence[NewRun]) -> list[uuid.UUID]:
    """Insert many runs of one task in one transaction, with COPY on PostgreSQL. All of them or none."""
    connection = sql.connection()
    ids: list[uuid.UUID] = [uuid7() for _ in runs]
    rows = [_params(connection, run_id, new) for run_id, new in zip(ids, runs, strict=True)]
    deferred = bool(runs) and runs[0].run_after is not None
    with transaction.atomic(using=connection.alias):
        if not sql.is_postgresql(connection):
            with connection.cursor() as cursor:
                cursor.executemany(_insert(*(["run_after"] if deferred else [])), rows)
            return ids
        columns = (*_COLUMNS, "run_after") if deferred else _COLUMNS
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY machinequeue_taskrun ({', '.join(columns)}) FROM STDIN") as copy,
        ):
            for row in rows:
                copy.write_row(row)
    return ids


def get(run_id: uuid.UUID) -> TaskRun | None:
    """The row, or None."""
    return TaskRun.objects.using(sql.alias()).filter(pk=run_id).first()


def database_now() -> datetime:
    """The database's clock."""
    connection = sql.connection()
    row = sql.fetch(connection, f"SELECT {sql.now(connection)}", ())
    moment = sql.read_time(row[0]) if row else None
    assert moment is not None
    return moment


def status(run_id: uuid.UUID) -> str | None:
    """Only the status: what a waiting caller asks again and again."""
    return TaskRun.objects.using(sql.alias()).filter(pk=run_id).values_list("status", flat=True).first()


def attempts(run_id: uuid.UUID) -> list[Attempt]:
    """The attempts of a run, oldest first, with their machines."""
    return list(Attempt.objects.using(sql.alias()).filter(run_id=run_id).select_related("machine").order_by("epoch"))


@dataclass(frozen=True)
class Trace:
    """What a result shows of an attempt."""

    status: str
    error: str
    traceback: str
    sentence: str
    worker_id: str
    """The machine's Fly id, or what else is known of who made the attempt."""
    finished_at: datetime | None


_TRACES = """
SELECT a.status, a.error, a.traceback, a.diagnosis, a.boot_id, m.fly_id, m.name, a.finished_at
FROM machinequeue_attempt a LEFT JOIN machinequeue_machine m ON m.id = a.machine_id
WHERE a.run_id = %s ORDER BY a.epoch"""


def traces(run_id: uuid.UUID) -> list[Trace]:
    """The attempts of a run, oldest first, as its result shows them: callers that wait ask this often."""
    connection = sql.connection()
    return [
        Trace(
            status=status,
            error=error,
            traceback=traceback,
            sentence=(sql.read_json(diagnosis) or {}).get("sentence", ""),
            worker_id=fly_id or name or boot_id,
            finished_at=sql.read_time(finished_at),
        )
        for status, error, traceback, diagnosis, boot_id, fly_id, name, finished_at in sql.fetch_all(
            connection, _TRACES, [sql.key(connection, run_id)]
        )
    ]


def output(run_id: uuid.UUID) -> str:
    """What the attempts of a run printed, oldest first."""
    chunks = OutputChunk.objects.using(sql.alias()).filter(attempt__run_id=run_id).order_by("attempt__epoch", "id")
    return "".join(
        (f"[{dropped} bytes dropped]\n" if dropped else "") + text
        for text, dropped in chunks.values_list("text", "dropped")
    )


def cancel(run_id: uuid.UUID) -> bool:
    """Cancel a READY run at once, ask a RUNNING one to stop. False when it had finished."""
    row = TaskRun.objects.using(sql.alias()).filter(pk=run_id)
    # A run may be given back, or claimed, between two looks; it cannot do so for ever, as each costs a budget.
    while row.filter(status__in=(RunStatus.READY, RunStatus.RUNNING)).exists():
        if row.filter(status=RunStatus.READY).update(
            status=RunStatus.CANCELLED,
            cancel_requested_at=Now(),
            finished_at=Now(),
            reason="cancelled before it started",
        ):
            return True
        # Asked again, it is as old as the first time: whoever does not answer is destroyed some time after that.
        if row.filter(status=RunStatus.RUNNING).update(cancel_requested_at=Coalesce("cancel_requested_at", Now())):
            if sql.is_postgresql(connection := sql.connection()):
                sql.execute(connection, "SELECT pg_notify('machinequeue_cancel', %s)", [str(run_id)])
            return True
    return False


def retry(run_id: uuid.UUID) -> bool:
    """Give a finished run that did not succeed a fresh set of attempts. False when there was nothing to retry."""
    return bool(
        TaskRun.objects.using(sql.alias())
        .filter(pk=run_id, status__in=FINISHED - {RunStatus.SUCCESSFUL})
        .update(
            status=RunStatus.READY,
            run_after=Now(),
            finished_at=None,
            expires_at=None,
            cancel_requested_at=None,
            task_attempts=0,
            lost_attempts=0,
            reason="retried by hand",
        )
    )


@dataclass(frozen=True)
class Group:
    """The due runs of one (backend, queue, spec key)."""

    backend: str
    queue: str
    spec_key: str
    due: int
    spec: dict[str, Any]
    first: uuid.UUID | None
    """The most urgent of them."""
    priority: int = 0
    """Its priority."""
    timeout: float = 0.0
    """Its timeout, in seconds."""


def due() -> QuerySet[TaskRun]:
    """READY runs whose time has come and whose queue is not paused."""
    paused = Queue.objects.filter(backend=OuterRef("backend"), name=OuterRef("queue"), paused_at__isnull=False)
    return (
        TaskRun.objects.using(sql.alias())
        .filter(status=RunStatus.READY, run_after__lte=Now())
        .exclude(Q(expires_at__isnull=False) & Q(expires_at__lte=Now()))
        .exclude(Exists(paused))
    )


def in_line(backend: str, queue: str, spec_key: str) -> QuerySet[TaskRun]:
    """The due runs of a lane in the order in which machines claim them: the most urgent first."""
    return due().filter(backend=backend, queue=queue, spec_key=spec_key).order_by("-priority", "id")


def due_groups(backend: str | None = None, queue: str | None = None) -> list[Group]:
    """The demand: due runs by queue and spec key, the most urgent first."""
    rows = due()
    if backend is not None:
        rows = rows.filter(backend=backend, queue=queue)
    counted = rows.values("backend", "queue", "spec_key").annotate(due=Count("id"), urgent=Min(-F("priority")))
    groups = []
    for row in counted.order_by("urgent"):
        lane = (row["backend"], row["queue"], row["spec_key"])
        first = in_line(*lane).values("id", "spec", "priority", "timeout").first()
        if first is not None:  # else claimed meanwhile
            groups.append(Group(*lane, row["due"], first["spec"], first["id"], first["priority"], first["timeout"]))
    return groups


def expire() -> int:
    """End READY runs that were not started in time; how many."""
    return (
        TaskRun.objects.using(sql.alias())
        .filter(status=RunStatus.READY, expires_at__lte=Now())
        .update(status=RunStatus.EXPIRED, finished_at=Now(), reason="not started before it expired")
    )


def refuse(backend: str, queue: str, spec_key: str, reason: str) -> int:
    """READY → FAILED for the runs of a spec that Fly refuses and that they chose themselves; how many."""
    rows = TaskRun.objects.using(sql.alias()).filter(backend=backend, queue=queue, spec_key=spec_key)
    return rows.filter(status=RunStatus.READY).update(status=RunStatus.FAILED, finished_at=Now(), reason=reason)


NO_HEARTBEAT = "it sends no heartbeat"


@dataclass(frozen=True)
class Silent:
    """A claim that nobody keeps alive, or a cancel that nobody answers."""

    run_id: uuid.UUID
    epoch: int
    machine_id: int | None
    reason: str


def silent(cancel_seconds: float) -> list[Silent]:
    """RUNNING runs past their claim lease, and those that were asked to stop so many seconds ago."""
    running = TaskRun.objects.using(sql.alias()).filter(status=RunStatus.RUNNING)
    expired = running.filter(lease_expires_at__lt=Now())
    deaf = running.filter(cancel_requested_at__lt=Now() - timedelta(seconds=cancel_seconds))
    found = [Silent(*row, NO_HEARTBEAT) for row in _held(expired)]
    return found + [Silent(*row, "it does not answer a cancel") for row in _held(deaf)]


def _held(rows: QuerySet[TaskRun]) -> list[tuple[uuid.UUID, int, int | None]]:
    current = rows.filter(attempts__epoch=F("epoch"), attempts__status=AttemptStatus.RUNNING)
    return list(current.values_list("pk", "epoch", "attempts__machine_id"))


def orphaned() -> list[tuple[uuid.UUID, int]]:
    """(run id, epoch) of attempts that rows say are running on a machine that is gone, or whose row is."""
    rows = Attempt.objects.using(sql.alias()).filter(status=AttemptStatus.RUNNING)
    without = rows.filter(Q(machine=None) | Q(machine__status=MachineStatus.GONE))
    return list(without.values_list("run_id", "epoch"))


def why(run: TaskRun) -> str:
    """In words, why a run waits, what it does, or how it ended."""
    if run.status == RunStatus.RUNNING:
        attempt = Attempt.objects.using(sql.alias()).filter(run=run, epoch=run.epoch).select_related("machine").first()
        place = f" on {attempt.machine.name}" if attempt is not None and attempt.machine is not None else ""
        return f"running: attempt {run.epoch}{place}" + (", asked to stop" if run.cancel_requested_at else "")
    if run.status != RunStatus.READY:
        return run.reason or RunStatus(run.status).label.lower()
    database = TaskRun.objects.using(sql.alias())
    if not database.filter(pk=run.pk, run_after__lte=Now()).exists():
        return f"waiting until {run.run_after:%Y-%m-%d %H:%M:%S %Z}" + (f": {run.reason}" if run.reason else "")
    queue = Queue.objects.using(sql.alias()).filter(backend=run.backend, name=run.queue).first()
    if queue is not None and queue.paused_at:
        return f"waiting: queue {run.queue} is paused"
    dispatchers = Dispatcher.objects.using(sql.alias())
    if not dispatchers.filter(seen_at__gte=Now() - DISPATCHER_SILENT).exists():
        last = dispatchers.order_by("-seen_at").first()
        seen = f"the last was seen at {last.seen_at:%H:%M:%S}" if last else "none was ever seen"
        return f"waiting: no dispatcher is running ({seen}); start one with manage.py mq_dispatcher"
    return "waiting: " + (
        (queue.reasons.get(run.spec_key) if queue else None) or "a dispatcher will see it within a second"
    )


def unfinished_attempts(machine_id: int) -> list[tuple[uuid.UUID, int]]:
    """(run id, epoch) of attempts that rows say a machine is running."""
    rows = Attempt.objects.using(sql.alias()).filter(machine_id=machine_id, status=AttemptStatus.RUNNING)
    return list(rows.values_list("run_id", "epoch"))
