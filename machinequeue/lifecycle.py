"""Statuses, the legal transitions between them, and what follows a failure. Pure: no database, no clock.

Numbers are seconds. `rng` is a callable returning a float in [0, 1), so that tests choose the jitter.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
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


class ServerlessStatus(TextChoices):
    """What a serverless machine is to us: asked for, on its way, answering, on its way out, gone."""

    WISHED = "wished", pgettext_lazy("Serverless machine", "Wished for")
    CREATING = "creating", pgettext_lazy("Serverless machine", "Being created")
    READY = "ready", pgettext_lazy("Serverless machine", "Ready")
    RETIRING = "retiring", pgettext_lazy("Serverless machine", "Retiring")
    GONE = "gone", pgettext_lazy("Serverless machine", "Gone")


FINISHED = frozenset({RunStatus.SUCCESSFUL, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.EXPIRED})

TRANSITIONS: dict[str, frozenset[str]] = {
    # READY → FAILED: what the run itself asked for (a size, a region, an image) cannot be had.
    RunStatus.READY: frozenset({RunStatus.RUNNING, RunStatus.CANCELLED, RunStatus.EXPIRED, RunStatus.FAILED}),
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


class Budget(StrEnum):
    """What an attempt that ended in some way is charged to."""

    TASK = "task"
    """`max_attempts`."""
    INFRASTRUCTURE = "infrastructure"
    """The machine's fault, INFRASTRUCTURE_BUDGET times."""
    SIZE = "size"
    """The guest was too small: ends with the largest that the run may have."""
    NONE = "none"
    """The end."""


@dataclass(frozen=True)
class Rule:
    """What follows one way of ending: the budget that is charged, and whether another attempt may help at all."""

    budget: Budget
    again: bool = True


RULES: dict[AttemptStatus, Rule] = {
    AttemptStatus.FAILED: Rule(Budget.TASK),
    AttemptStatus.TIMED_OUT: Rule(Budget.TASK, again=False),
    AttemptStatus.OUT_OF_MEMORY: Rule(Budget.SIZE),
    AttemptStatus.LOST: Rule(Budget.INFRASTRUCTURE),
    AttemptStatus.INTERRUPTED: Rule(Budget.INFRASTRUCTURE),
    AttemptStatus.CANCELLED: Rule(Budget.NONE),
}


class CircuitKind(TextChoices):
    """What keeps machines from being launched, until it is mended."""

    BOOT = "boot", pgettext_lazy("Circuit", "Machines do not check in")
    TOKEN = "token", pgettext_lazy("Circuit", "Token refused")
    APP = "app", pgettext_lazy("Circuit", "App not found")
    QUOTA = "quota", pgettext_lazy("Circuit", "Quota reached")
    IMAGE = "image", pgettext_lazy("Circuit", "Image not found")
    REJECTED = "rejected", pgettext_lazy("Circuit", "Configuration refused")
    CAPACITY = "capacity", pgettext_lazy("Circuit", "No capacity")


class BackupKind(TextChoices):
    """What a backup is a copy of."""

    DATABASE = "database", pgettext_lazy("Backup", "Database")
    MEDIA = "media", pgettext_lazy("Backup", "Media files")


class BackupStatus(TextChoices):
    """How a backup stands or ended."""

    RUNNING = "running", pgettext_lazy("Backup", "Running")
    SUCCEEDED = "succeeded", pgettext_lazy("Backup", "Succeeded")
    FAILED = "failed", pgettext_lazy("Backup", "Failed")


class DrillStatus(TextChoices):
    """What a restore drill found out."""

    RUNNING = "running", pgettext_lazy("Drill", "Running")
    PROVEN = "proven", pgettext_lazy("Drill", "Proven")
    NOT_PROVEN = "not_proven", pgettext_lazy("Drill", "Not proven")
    FAILED = "failed", pgettext_lazy("Drill", "Failed")


class Misfire(TextChoices):
    """What becomes of ticks that were missed, because no dispatcher ran or the schedule could not be enqueued."""

    LATEST = "latest", pgettext_lazy("Misfire", "Only the latest")
    ALL = "all", pgettext_lazy("Misfire", "All, up to the limit")
    SKIP = "skip", pgettext_lazy("Misfire", "None")


@dataclass(frozen=True)
class Patience:
    """After so many failures in a row the circuit opens; then one launch per `probe_seconds` tries again.

    Before that, launches pause for `first_seconds`, doubling.
    """

    failures: int
    probe_seconds: float
    first_seconds: float = 2.0


PATIENCE: dict[CircuitKind, Patience] = {
    CircuitKind.BOOT: Patience(5, 600.0, 5.0),
    CircuitKind.TOKEN: Patience(1, 30.0),
    CircuitKind.APP: Patience(1, 30.0),
    CircuitKind.QUOTA: Patience(1, 60.0),
    CircuitKind.IMAGE: Patience(6, 600.0, 2.0),
    CircuitKind.REJECTED: Patience(1, 60.0),
    CircuitKind.CAPACITY: Patience(6, 60.0),
}


def pause(kind: CircuitKind, failures: int, rng: Callable[[], float] = random.random) -> tuple[bool, float]:
    """Whether the circuit is open after so many failures in a row, and the seconds before the next launch."""
    patience = PATIENCE[kind]
    if failures >= patience.failures:
        return True, patience.probe_seconds
    return False, patience.first_seconds * 2.0 ** (failures - 1) * (0.5 + rng() / 2)


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
    retry: bool | None = None
    """Whether the task said that another attempt helps; None: it said nothing, its class decides."""
    delay: float | None = None
    """Seconds that the task's own backoff asks for; None: the default."""
    charged: bool = True
    """False: nobody's fault (an image that is being replaced), so no budget is charged."""


@dataclass(frozen=True)
class Room:
    """The guest of the attempt in MB, and the next bigger one that the run may have; None when there is none."""

    memory_mb: int = 0
    bigger_mb: int | None = None


@dataclass(frozen=True)
class Decision:
    """What becomes of the run."""

    status: RunStatus
    delay: float
    task_attempts: int
    lost_attempts: int
    reason: str
    bigger: bool = False
    """Whether the next attempt is to have the bigger guest."""


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
    room: Room = Room(),
    rng: Callable[[], float] = random.random,
) -> Decision:
    """What follows a failed attempt, given the attempts charged so far to the task and to the infrastructure."""
    says = failure.sentence or failure.status.value
    rule = RULES[failure.status]
    if cancelled or rule.budget == Budget.NONE:
        return Decision(RunStatus.CANCELLED, 0.0, task_attempts, lost_attempts, "cancelled on request")
    if not failure.charged:
        return Decision(RunStatus.READY, 0.0, task_attempts, lost_attempts, f"{says}; starting again")
    if rule.budget == Budget.INFRASTRUCTURE:
        return _after_loss(says, task_attempts, lost_attempts + 1)
    if rule.budget == Budget.SIZE and room.bigger_mb is not None:
        delay = backoff(1, rng)
        reason = f"{says}; retrying with {room.bigger_mb} MB in {delay:.0f} s"
        return Decision(RunStatus.READY, delay, task_attempts, lost_attempts, reason, bigger=True)
    if rule.budget == Budget.SIZE:
        reason = f"{says}; {room.memory_mb} MB is the most that the run may have (max_memory_mb)"
        return Decision(RunStatus.FAILED, 0.0, task_attempts + 1, lost_attempts, reason)
    charged = Decision(RunStatus.FAILED, 0.0, task_attempts + 1, lost_attempts, says)
    return _after_error(failure, charged, max_attempts, rng)


def _after_loss(says: str, task_attempts: int, lost_attempts: int) -> Decision:
    if lost_attempts >= INFRASTRUCTURE_BUDGET:
        reason = f"{says}; given up after {lost_attempts} attempts lost with their machines"
        return Decision(RunStatus.FAILED, 0.0, task_attempts, lost_attempts, reason)
    return Decision(RunStatus.READY, 0.0, task_attempts, lost_attempts, f"{says}; starting again")


def _after_error(failure: Failure, end: Decision, max_attempts: int, rng: Callable[[], float]) -> Decision:
    """`end`, which has the attempt charged already, unless another attempt may help and is allowed."""
    again = RULES[failure.status].again if failure.retry is None else failure.retry
    if not again:
        return end
    if end.task_attempts >= max_attempts:
        tries = "" if max_attempts == 1 else f"; all {max_attempts} attempts are used"
        return replace(end, reason=end.reason + tries)
    delay = backoff(end.task_attempts, rng) if failure.delay is None else max(failure.delay, 0.0)
    reason = f"attempt {end.task_attempts} of {max_attempts}: {end.reason}; retrying in {delay:.0f} s"
    return replace(end, status=RunStatus.READY, delay=delay, reason=reason)


def diagnosis(failure: Failure) -> dict[str, Any]:
    """The stable category, the sentence and the remedy that the admin shows for an attempt."""
    return {"category": failure.status.value, "sentence": failure.sentence, "remedy": failure.remedy}
