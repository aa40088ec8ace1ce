"""Statuses, the legal transitions between them, and what follows a failure. Pure: no database, no clock.

Numbers are seconds. `rng` is a callable returning a float in [0, 1), so that tests choose the jitter.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import TextChoices
from django.utils.translation import pgettext_lazy


class RunStatus(TextChoices):
    """What a run is; the first four are Django's."""

    READY = "READY", pgettext_lazy("Run", "Ready")
    RUNNING = "RUNNING", pgettext_lazy("Run", "Running")
    SUCCESSFUL = "SUCCESSFUL", pgettext_lazy("Run", "Successful")
    FAILED = "FAILED", pgettext_lazy("Run", "Failed")
    CANCELLED = "CANCELLED", pgettext_lazy("Run", "Cancelled")
    EXPIRED = "EXPIRED", pgettext_lazy("Run", "Expired")


class AttemptStatus(TextChoices):
    """How one attempt stands or ended."""

    RUNNING = "running", pgettext_lazy("Attempt", "Running")
    SUCCEEDED = "succeeded", pgettext_lazy("Attempt", "Succeeded")
    FAILED = "failed", pgettext_lazy("Attempt", "Failed")
    TIMED_OUT = "timed out", pgettext_lazy("Attempt", "Timed out")
    OUT_OF_MEMORY = "out of memory", pgettext_lazy("Attempt", "Out of memory")
    LOST = "lost", pgettext_lazy("Attempt", "Lost")
    CANCELLED = "cancelled", pgettext_lazy("Attempt", "Cancelled")
    INTERRUPTED = "interrupted", pgettext_lazy("Attempt", "Interrupted")


class MachineStatus(TextChoices):
    """What a machine is to us; Fly's own word for it is its state."""

    RESERVED = "reserved", pgettext_lazy("Machine", "Reserved")
    CREATED = "created", pgettext_lazy("Machine", "Created")
    BOOTED = "booted", pgettext_lazy("Machine", "Booted")
    IDLE = "idle", pgettext_lazy("Machine", "Idle")
    BUSY = "busy", pgettext_lazy("Machine", "Busy")
    RETIRING = "retiring", pgettext_lazy("Machine", "Retiring")
    GONE = "gone", pgettext_lazy("Machine", "Gone")


FINISHED = frozenset({RunStatus.SUCCESSFUL, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.EXPIRED})

TRANSITIONS: dict[str, frozenset[str]] = {
    RunStatus.READY: frozenset({RunStatus.RUNNING, RunStatus.CANCELLED, RunStatus.EXPIRED}),
    RunStatus.RUNNING: frozenset({RunStatus.READY, RunStatus.SUCCESSFUL, RunStatus.FAILED, RunStatus.CANCELLED}),
    # An operator's retry starts a finished run again.
    RunStatus.SUCCESSFUL: frozenset(),
    RunStatus.FAILED: frozenset({RunStatus.READY}),
    RunStatus.CANCELLED: frozenset({RunStatus.READY}),
    RunStatus.EXPIRED: frozenset({RunStatus.READY}),
}

INFRASTRUCTURE_BUDGET = 3
"""Attempts that may be lost to machines before the run is called poison."""

BACKOFF_FIRST = 5.0
BACKOFF_LONGEST = 600.0


def may(status: str, to: str) -> bool:
    """Whether a run may go from one status to another."""
    return to in TRANSITIONS[status]


@dataclass(frozen=True)
class Failure:
    """How an attempt ended, as its supervisor or the dispatcher saw it."""

    status: AttemptStatus
    error: str = ""
    """Dotted path of the exception's class."""
    traceback: str = ""
    sentence: str = ""
    remedy: str = ""
    exit_code: int | None = None
    signal: int | None = None
    retry: bool = True
    """False: the task said that no further attempt helps."""
    delay: float | None = None
    """Seconds that the task's own backoff asks for; None: the default."""


@dataclass(frozen=True)
class Decision:
    """What becomes of the run."""

    status: RunStatus
    delay: float
    task_attempts: int
    lost_attempts: int
    reason: str


def backoff(attempt: int, rng: Callable[[], float] = random.random) -> float:
    """Seconds before the next attempt after this many: doubling from 5 s to 10 min, half to full of it at random."""
    longest = min(BACKOFF_FIRST * 2.0 ** (attempt - 1), BACKOFF_LONGEST)
    return longest * (0.5 + rng() / 2)


def after_failure(
    failure: Failure,
    *,
    task_attempts: int,
    lost_attempts: int,
    max_attempts: int,
    cancelled: bool,
    rng: Callable[[], float] = random.random,
) -> Decision:
    """What follows a failed attempt, given the attempts charged so far to the task and to the infrastructure."""
    says = failure.sentence or failure.status.value
    if cancelled or failure.status == AttemptStatus.CANCELLED:
        return Decision(RunStatus.CANCELLED, 0.0, task_attempts, lost_attempts, "cancelled on request")
    if failure.status in (AttemptStatus.LOST, AttemptStatus.INTERRUPTED):
        lost_attempts += 1
        if lost_attempts >= INFRASTRUCTURE_BUDGET:
            reason = f"{says}; given up after {lost_attempts} attempts lost with their machines"
            return Decision(RunStatus.FAILED, 0.0, task_attempts, lost_attempts, reason)
        return Decision(RunStatus.READY, 0.0, task_attempts, lost_attempts, f"{says}; starting again")
    task_attempts += 1
    if not failure.retry or failure.status == AttemptStatus.TIMED_OUT:
        return Decision(RunStatus.FAILED, 0.0, task_attempts, lost_attempts, says)
    if task_attempts >= max_attempts:
        tries = "" if max_attempts == 1 else f"; all {max_attempts} attempts are used"
        return Decision(RunStatus.FAILED, 0.0, task_attempts, lost_attempts, says + tries)
    delay = backoff(task_attempts, rng) if failure.delay is None else max(failure.delay, 0.0)
    reason = f"attempt {task_attempts} of {max_attempts}: {says}; retrying in {delay:.0f} s"
    return Decision(RunStatus.READY, delay, task_attempts, lost_attempts, reason)


def diagnosis(failure: Failure) -> dict[str, Any]:
    """The stable category, the sentence and the remedy that the admin shows for an attempt."""
    return {"category": failure.status.value, "sentence": failure.sentence, "remedy": failure.remedy}
