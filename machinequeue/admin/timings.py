"""How long a run waited and ran, and which attempt it is on. Pure: rows in, numbers out."""

from datetime import datetime

from machinequeue.lifecycle import RunStatus
from machinequeue.models import Attempt, TaskRun


def due_at(run: TaskRun) -> datetime:
    """When the run's first (or, READY again, its next) start became possible."""
    # A retry moves run_after beyond the first start; what the run waited for before it is the enqueue then.
    if run.started_at is None or run.status == RunStatus.READY or run.run_after <= run.started_at:
        return max(run.enqueued_at, run.run_after)
    return run.enqueued_at


def waited(run: TaskRun, now: datetime) -> float | None:
    """Seconds from due to the first start, or that it waits by now; negative: it becomes due in so many."""
    if run.status == RunStatus.READY:
        return (now - due_at(run)).total_seconds()
    end = run.started_at or run.finished_at
    return None if end is None else max((end - due_at(run)).total_seconds(), 0.0)


def ran(attempt: Attempt, now: datetime) -> float | None:
    """Seconds of an attempt: in the task where they were measured, else from its claim."""
    if attempt.seconds is not None:
        return attempt.seconds
    return ((attempt.finished_at or now) - attempt.claimed_at).total_seconds()


def attempt_number(run: TaskRun) -> int:
    """Attempts that count against the limit, the present one included. A retry by hand starts again at none."""
    if run.status in (RunStatus.RUNNING, RunStatus.SUCCESSFUL):
        return run.task_attempts + 1
    if run.status == RunStatus.CANCELLED:
        return max(run.task_attempts, min(run.epoch, 1))
    return run.task_attempts
