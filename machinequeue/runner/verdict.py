"""What the end of an attempt was, by what the supervisor did, what the task said and how its process died. Pure."""

import signal
from dataclasses import dataclass
from typing import Any

from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.runner.channel import Closed
from machinequeue.runner.template import Stuck

_INTERRUPTIONS = {
    AttemptStatus.TIMED_OUT: ("RunTimedOut", "Give the task a longer timeout, or less to do."),
    AttemptStatus.CANCELLED: ("RunCancelled", ""),
    AttemptStatus.INTERRUPTED: ("RunLost", ""),
}


@dataclass(frozen=True, kw_only=True)
class End:
    """How an attempt that did not succeed ended."""

    task: str
    timeout: float
    grace: float
    status: int | None
    """The exit code of the process or the negative number of its signal; None while it lives."""
    said: dict[str, Any] | None
    """The failure that the task process reported."""
    interrupted: AttemptStatus | None
    """Why the supervisor interrupted the task, if it did."""
    killed: bool
    """Whether the supervisor killed it."""
    starved: bool
    """Whether the kernel killed somebody for memory during the attempt."""
    large: bool
    """Whether the process had most of the machine's memory."""
    memory_mb: int
    peak_mb: int | None


def failure(end: End) -> Failure:
    """The failure that is recorded."""
    if end.interrupted is not None:
        return _interruption(end, end.interrupted)
    if _out_of_memory(end):
        return _starvation(end)
    if end.said is not None:
        return Failure(**{**end.said, "status": AttemptStatus(end.said["status"])})
    status = end.status or 0
    how = f"exit code {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
    return Failure(
        AttemptStatus.FAILED,
        error="machinequeue.errors.RunCrashed",
        sentence=f"the process of task {end.task} ended without a result ({how})",
        remedy="Look for os._exit, a crash in a C extension, or somebody who kills processes.",
    )


def given_up(error: Exception, task: str, timeout: float) -> Failure:
    """The failure of an attempt whose runner cannot go on."""
    if isinstance(error, Stuck) and error.path == task:
        return Failure(
            AttemptStatus.TIMED_OUT,
            error="machinequeue.errors.RunTimedOut",
            sentence=f"the module of task {task} had not been imported after {timeout:g} s",
            remedy="Look for what the module waits for when it is imported.",
        )
    what = f"its runner failed: {error!r:.500}"
    if isinstance(error, Closed):
        what = "its template process ended"
    elif isinstance(error, Stuck):
        what = f"the module of another task, {error.path}, hangs where its machine imports it"
    return Failure(AttemptStatus.LOST, error="machinequeue.errors.RunLost", sentence=what)


def _out_of_memory(end: End) -> bool:
    if end.said is not None:
        return end.starved  # the kernel took a child of the task, and the task failed for it
    return end.status == -signal.SIGKILL and not end.killed and (end.starved or end.large)


def _starvation(end: End) -> Failure:
    at = f" at {end.memory_mb} MB" if end.memory_mb else ""
    whose = "a process that the task started " if end.said is not None else ""
    return Failure(
        AttemptStatus.OUT_OF_MEMORY,
        error="machinequeue.errors.RunOutOfMemory",
        traceback=end.said.get("traceback", "") if end.said is not None else "",
        sentence=f"{whose}ran out of memory{at} (peak {end.peak_mb or 0} MB)",
        remedy="Give the task more memory_mb, or less to hold at once.",
    )


def _interruption(end: End, why: AttemptStatus) -> Failure:
    error, remedy = _INTERRUPTIONS[why]
    sentence = {
        AttemptStatus.TIMED_OUT: f"longer than its timeout of {end.timeout:g} s",
        AttemptStatus.CANCELLED: "cancelled while it ran",
        AttemptStatus.INTERRUPTED: "its machine was stopped",
    }[why]
    if end.killed and end.said is None:
        sentence += f"; it did not end within {end.grace:g} s and was killed"
    own = end.said or {}
    # A task may name TaskTimeout in its `retry_on`.
    again = {"retry": True, "delay": own["delay"]} if own.get("retry") else {}
    return Failure(
        why,
        error=f"machinequeue.errors.{error}",
        traceback=own.get("traceback", ""),
        sentence=sentence,
        remedy=remedy,
        **again,
    )
