"""Claims: a runner takes a run, holds it by heartbeats, and writes its outcome.

Every write names the epoch that the claim drew; where it is no longer the run's, nothing changes.
"""

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from machinequeue import conf, lifecycle
from machinequeue.lifecycle import AttemptStatus, Failure, Room, RunStatus
from machinequeue.models import Attempt, OutputChunk, TaskRun
from machinequeue.records import profiles, runs, sql

MOST_DROPPED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A run as its runner holds it."""

    run_id: uuid.UUID
    epoch: int
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    backend: str
    queue: str
    priority: int
    run_after: datetime | None
    timeout: float
    max_attempts: int
    task_attempts: int
    lost_attempts: int
    enqueued_at: datetime | None
    started_at: datetime | None
    last_attempted_at: datetime | None
    checkpoint: Any
    metadata: Any


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a supervisor knows of a finished attempt beside its outcome."""

    pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    peak_memory_mb: int | None = None
    seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    output: str = ""
    dropped: int = 0
    progress: Any = None
    succeeded: bool = False
    """Whether the outcome was recorded as a success."""


_FIELDS = (
    "id, epoch, task, args, kwargs, backend, queue, priority, run_after, timeout, max_attempts, task_attempts, "
    "lost_attempts, enqueued_at, started_at, last_attempted_at, checkpoint, metadata"
)

# The machine itself must still be allowed to claim: not retiring, and not started again since (boot id). A run whose
# task was found to need more memory than this machine has is left for `profiles.fit` and a bigger one.
_PICK = """
SELECT id FROM machinequeue_taskrun
WHERE status = 'READY' AND queue = %s AND spec_key = %s AND backend = %s AND run_after <= {now} AND timeout <= %s
  AND (expires_at IS NULL OR expires_at > {now})
  AND NOT EXISTS (SELECT 1 FROM machinequeue_taskprofile p WHERE p.task = machinequeue_taskrun.task
                  AND p.memory_mb > CAST(machinequeue_taskrun.spec->>'memory_mb' AS INTEGER)
                  AND CAST(machinequeue_taskrun.spec->>'max_memory_mb' AS INTEGER)
                      > CAST(machinequeue_taskrun.spec->>'memory_mb' AS INTEGER))
  AND NOT EXISTS (SELECT 1 FROM machinequeue_queue q WHERE q.backend = %s AND q.name = %s AND q.paused_at IS NOT NULL)
  AND EXISTS (SELECT 1 FROM machinequeue_machine m
              WHERE m.id = %s AND m.boot_id = %s AND m.status IN ('booted', 'idle', 'busy'))
ORDER BY priority DESC, id LIMIT 1"""

_TAKE = """
UPDATE machinequeue_taskrun
SET status = 'RUNNING', epoch = epoch + 1, lease_expires_at = {lease}, reason = '', progress = NULL,
    started_at = COALESCE(started_at, {now}), last_attempted_at = {now}
WHERE id = ({pick}) RETURNING {fields}"""

_CLAIM_POSTGRESQL = """
WITH claimed AS ({take}),
attempt AS (INSERT INTO machinequeue_attempt (run_id, epoch, machine_id, boot_id)
            SELECT id, epoch, %s, %s FROM claimed),
machine AS (UPDATE machinequeue_machine SET status = 'busy'
            WHERE id = %s AND status IN ('booted', 'idle') AND EXISTS (SELECT 1 FROM claimed))
SELECT * FROM claimed"""

_HOLD = """
UPDATE machinequeue_taskrun SET lease_expires_at = {lease}
WHERE status = 'RUNNING' AND EXISTS (
    SELECT 1 FROM machinequeue_attempt a
    WHERE a.run_id = machinequeue_taskrun.id AND a.epoch = machinequeue_taskrun.epoch
      AND a.machine_id = %s AND a.boot_id = %s AND a.status = 'running')
RETURNING {fields}"""


@dataclass(frozen=True)
class Claimant:
    """The machine that claims, in the present boot."""

    machine_id: int
    boot_id: str
    backend: str
    queue: str
    spec_key: str


def claim(by: Claimant, *, lease_seconds: float, life_seconds: float) -> Claim | None:
    """Take the most urgent due run that this machine may execute and has the life left for: READY → RUNNING."""
    connection = sql.connection()
    pick = [by.queue, by.spec_key, by.backend, life_seconds, by.backend, by.queue, by.machine_id, by.boot_id]
    take = [lease_seconds, *pick]
    if sql.is_postgresql(connection):
        statement = _CLAIM_POSTGRESQL.format(take=_take(connection, " FOR UPDATE SKIP LOCKED"))
        row = sql.fetch(connection, statement, [*take, by.machine_id, by.boot_id, by.machine_id])
    else:
        row = _claim_in_steps(connection, by, take)
    return None if row is None else _claim(row)


def unanswered(by: Claimant, *, lease_seconds: float) -> Claim | None:
    """The run that this boot holds already: an earlier claim took it, and the answer was lost on its way.

    For a machine that executes nothing, or it would take over what it is at.
    """
    connection = sql.connection()
    statement = _HOLD.format(lease=sql.in_seconds(connection), fields=_FIELDS)
    row = sql.fetch(connection, statement, [lease_seconds, by.machine_id, by.boot_id])
    return None if row is None else _claim(row)


def outlived(by: Claimant, *, life_seconds: float) -> bool:
    """Whether a due run waits that this machine would execute, had it more life left: another machine must."""
    due = runs.due().filter(backend=by.backend, queue=by.queue, spec_key=by.spec_key)
    return due.filter(timeout__gt=life_seconds).exists()


def _take(connection: Any, locking: str) -> str:
    now = sql.now(connection)
    pick = _PICK.format(now=now) + locking
    return _TAKE.format(lease=sql.in_seconds(connection), now=now, pick=pick, fields=_FIELDS)


def _claim_in_steps(connection: Any, by: Claimant, take: list[Any]) -> tuple[Any, ...] | None:
    with transaction.atomic(using=connection.alias):
        row = sql.fetch(connection, _take(connection, ""), take)
        if row is None:
            return None
        statement = "INSERT INTO machinequeue_attempt (run_id, epoch, machine_id, boot_id) VALUES (%s, %s, %s, %s)"
        sql.execute(connection, statement, [row[0], row[1], by.machine_id, by.boot_id])
        statement = "UPDATE machinequeue_machine SET status = 'busy' WHERE id = %s AND status IN ('booted', 'idle')"
        sql.execute(connection, statement, [by.machine_id])
        return row


def _claim(row: tuple[Any, ...]) -> Claim:
    return Claim(
        run_id=sql.read_key(row[0]),
        epoch=row[1],
        task=row[2],
        args=sql.read_json(row[3]),
        kwargs=sql.read_json(row[4]),
        backend=row[5],
        queue=row[6],
        priority=row[7],
        run_after=sql.read_time(row[8]),
        timeout=row[9],
        max_attempts=row[10],
        task_attempts=row[11],
        lost_attempts=row[12],
        enqueued_at=sql.read_time(row[13]),
        started_at=sql.read_time(row[14]),
        last_attempted_at=sql.read_time(row[15]),
        checkpoint=sql.read_json(row[16]),
        metadata=sql.read_json(row[17]),
    )


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is to be stored; its value may be None."""

    value: Any


@dataclass(frozen=True)
class Pulse:
    """The answer to a heartbeat."""

    held: bool
    cancel: bool


def _row(held: Claim) -> QuerySet[TaskRun]:
    """The run while the claim holds, else nothing."""
    return TaskRun.objects.using(sql.alias()).filter(pk=held.run_id, epoch=held.epoch, status=RunStatus.RUNNING)


def heartbeat(
    held: Claim, *, lease_seconds: float, pid: int | None, progress: Any = None, saved: Saved | None = None
) -> Pulse:
    """Extend the claim lease and learn whether the run is to be cancelled. `held` is False when the claim was lost."""
    changes: dict[str, Any] = {"lease_expires_at": Now() + timedelta(seconds=lease_seconds)}
    if progress is not None:
        changes["progress"] = progress
    if saved is not None:
        changes["checkpoint"] = saved.value
    if not _row(held).update(**changes):
        return Pulse(held=False, cancel=False)
    if pid is not None:
        Attempt.objects.using(sql.alias()).filter(run_id=held.run_id, epoch=held.epoch, pid=None).update(pid=pid)
    return pulse(held)


def pulse(held: Claim) -> Pulse:
    """Whether the claim still holds and the run is to be cancelled, without extending anything."""
    asked = _row(held).values_list("cancel_requested_at").first()
    return Pulse(held=asked is not None, cancel=asked is not None and asked[0] is not None)


def checkpoint(held: Claim, value: Any) -> bool:
    """Store what the next attempt is to go on from. False when the claim was lost."""
    return bool(_row(held).update(checkpoint=value))


def lose_older(machine_id: int, boot_id: str, name: str) -> int:
    """The machine was started again: what it ran in earlier boots is lost. Returns how many attempts that were."""
    older = Attempt.objects.using(sql.alias()).filter(machine_id=machine_id, status=AttemptStatus.RUNNING)
    failure = Failure(
        AttemptStatus.LOST, error="machinequeue.errors.RunLost", sentence=f"machine {name} was started again"
    )
    attempts = older.exclude(boot_id=boot_id).values_list("run_id", "epoch")
    return sum(fail(run_id, epoch, failure, Report()) is not None for run_id, epoch in list(attempts))


def recorded(held: Claim, status: AttemptStatus) -> str | None:
    """Whether the attempt has ended so, by the run's status now; None when it has not, and the claim was lost.

    For a writer who finds its claim gone: an earlier try of its own may have been committed and its answer lost.
    """
    attempt = Attempt.objects.using(sql.alias()).filter(run_id=held.run_id, epoch=held.epoch, status=status)
    found = attempt.values_list("run__epoch", "run__status").first()
    if found is None:
        return None
    # A later epoch: the run was given back, and another attempt has begun since.
    return found[1] if found[0] == held.epoch else RunStatus.READY.value


def add_output(held: Claim, text: str, dropped: int) -> None:
    """Store a piece of what the attempt printed, unless it has ended."""
    attempts = Attempt.objects.using(sql.alias()).filter(run_id=held.run_id, epoch=held.epoch)
    attempt = attempts.filter(status=AttemptStatus.RUNNING).values_list("pk").first()
    if attempt is not None:
        _keep_output(attempt[0], text, dropped)


def _keep_output(attempt: Any, text: str, dropped: int) -> None:
    # A task can print more than the column can count, gigabytes within a second; the text says the number exactly.
    dropped = min(dropped, MOST_DROPPED)
    OutputChunk.objects.using(sql.alias()).create(attempt_id=attempt, text=text, dropped=dropped)


_SUCCEED_RUN = """
UPDATE machinequeue_taskrun
SET status = 'SUCCESSFUL', finished_at = {now}, lease_expires_at = NULL, return_value = %s, reason = '',
    progress = COALESCE({progress}, progress)
WHERE id = %s AND epoch = %s AND status = 'RUNNING'"""

_SUCCEED_ATTEMPT = """
UPDATE machinequeue_attempt
SET status = 'succeeded', finished_at = {now}, pid = %s, exit_code = 0, peak_memory_mb = %s, seconds = %s, stages = %s
WHERE run_id = %s AND epoch = %s"""


def succeed(held: Claim, return_value: Any, report: Report) -> bool:
    """RUNNING → SUCCESSFUL. False when the claim was lost meanwhile."""
    connection = sql.connection()
    run_key = sql.key(connection, held.run_id)
    progress = None if report.progress is None else sql.dumps(report.progress)
    run = [sql.dumps(return_value), progress, run_key, held.epoch]
    attempt = [report.pid, report.peak_memory_mb, report.seconds, sql.dumps(report.stages), run_key, held.epoch]
    update_run, update_attempt, both = _succeed_statements(sql.now(connection), sql.is_postgresql(connection))
    if sql.is_postgresql(connection) and not report.output:
        return sql.execute(connection, both, [*run, *attempt]) == 1
    with transaction.atomic(using=connection.alias):
        if not sql.execute(connection, update_run, run):
            return False
        if report.output:
            add_output(held, report.output, report.dropped)
        sql.execute(connection, update_attempt, attempt)
    return True


@lru_cache(maxsize=2)
def _succeed_statements(now: str, postgresql: bool) -> tuple[str, str, str]:
    run = _SUCCEED_RUN.format(now=now, progress="%s::jsonb" if postgresql else "%s")
    attempt = _SUCCEED_ATTEMPT.format(now=now)
    both = f"WITH done AS ({run} RETURNING 1) {attempt} AND EXISTS (SELECT 1 FROM done)"  # noqa: S608 - ours
    return run, attempt, both


def fail(run_id: uuid.UUID, epoch: int, failure: Failure, report: Report) -> lifecycle.Decision | None:
    """RUNNING → READY, FAILED or CANCELLED, as `lifecycle` decides. None when the claim was lost meanwhile."""
    database = sql.alias()
    with transaction.atomic(using=database):
        held = TaskRun.objects.using(database).filter(pk=run_id, epoch=epoch, status=RunStatus.RUNNING)
        # The first statement writes, so that SQLite takes its write lock before it reads.
        if not held.update(epoch=F("epoch")):
            return None
        run = held.get()
        bigger = conf.bigger(run.spec)
        decision = lifecycle.after_failure(
            failure,
            task_attempts=run.task_attempts,
            lost_attempts=run.lost_attempts,
            max_attempts=run.max_attempts,
            cancelled=run.cancel_requested_at is not None,
            room=Room(run.spec["memory_mb"], bigger["memory_mb"] if bigger else None),
        )
        finished = decision.status != RunStatus.READY
        grown: dict[str, Any] = {}
        if decision.bigger and bigger is not None:
            grown = {"spec": bigger, "spec_key": conf.spec_key(bigger)}
            profiles.outgrew(run.task, run.spec, bigger["memory_mb"])
        held.update(
            status=decision.status,
            finished_at=Now() if finished else None,
            run_after=F("run_after") if finished else _in(decision.delay),
            lease_expires_at=None,
            task_attempts=decision.task_attempts,
            lost_attempts=decision.lost_attempts,
            reason=decision.reason,
            **grown,
        )
        _end_attempt(run_id, epoch, failure, report)
    return decision


def _in(seconds: float) -> Any:
    # SQLite compares times as text, and writes sums with more digits than the present: one with 0 would not be due yet.
    return Now() + timedelta(seconds=seconds) if seconds else Now()


def _end_attempt(run_id: uuid.UUID, epoch: int, failure: Failure, report: Report) -> None:
    attempt = Attempt.objects.using(sql.alias()).get(run_id=run_id, epoch=epoch)
    attempt.status = failure.status
    attempt.finished_at = Now()
    attempt.pid = report.pid or attempt.pid
    attempt.exit_code = report.exit_code if report.exit_code is not None else failure.exit_code
    attempt.signal = report.signal if report.signal is not None else failure.signal
    attempt.peak_memory_mb = report.peak_memory_mb
    attempt.seconds = report.seconds
    attempt.stages = report.stages
    attempt.error = failure.error
    attempt.traceback = failure.traceback
    attempt.diagnosis = lifecycle.diagnosis(failure)
    attempt.save()
    if report.output:
        _keep_output(attempt.pk, report.output, report.dropped)
