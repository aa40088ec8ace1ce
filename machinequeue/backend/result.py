"""What an enqueue returns: Django's TaskResult, and what a machine adds to it."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asgiref.sync import sync_to_async

from machinequeue import conf
from machinequeue.compat import AnyTaskContext, AnyTaskResult
from machinequeue.errors import WaitInsideTask
from machinequeue.lifecycle import FINISHED, RunStatus
from machinequeue.payload import normalize
from machinequeue.records import runs, sql

SHORTEST_POLL = 0.002
LONGEST_POLL = 0.5
LARGEST_CHECKPOINT = 1 << 20
"""Bytes of JSON."""


@dataclass(frozen=True, kw_only=True)
class MachineTaskResult(AnyTaskResult):  # type: ignore[misc]  # the stubs miss that it is frozen
    """A run as its enqueuer sees it. `status` is one of Django's four; `run_status` also says CANCELLED or EXPIRED."""

    run_status: str = "READY"
    progress: dict[str, Any] | None = None
    metadata: Any = None

    def __post_init__(self) -> None:
        # The arguments were made JSON before they came here. The parent's slot gets its default only from a parent's
        # __init__ made with slots.
        object.__setattr__(self, "_return_value", None)

    def refresh(self) -> None:
        """Read the run again."""
        if self.run_status == RunStatus.READY and runs.status(uuid.UUID(self.id)) == RunStatus.READY:
            return  # nothing of a run that waits changes: the usual answer to one who looks often
        self._take(self.task.get_backend().get_result(self.id))

    async def arefresh(self) -> None:
        """`refresh`, from async code."""
        self._take(await self.task.get_backend().aget_result(self.id))

    def _take(self, fresh: Any) -> None:
        for name in (*_REFRESHED, "run_status", "progress", "metadata"):
            object.__setattr__(self, name, getattr(fresh, name))

    def wait(self, timeout: float | None = None) -> "MachineTaskResult":
        """Wait until the run has finished, at most `timeout` seconds; returns the refreshed result itself.

        Raises TimeoutError, and WaitInsideTask in a task (where all machines could wait for each other).
        """
        _refuse_in_task()
        for pause in _pauses(timeout):
            if runs.status(uuid.UUID(self.id)) in FINISHED:
                break
            if pause is None:
                raise TimeoutError(f"Run {self.id} had not finished after {timeout:g} s: {self.why()}")
            time.sleep(pause)
        self.refresh()
        return self

    async def await_result(self, timeout: float | None = None) -> "MachineTaskResult":  # noqa: ASYNC109 - as wait()
        """`wait`, from async code."""
        _refuse_in_task()
        status = sync_to_async(runs.status, thread_sensitive=True)
        for pause in _pauses(timeout):
            if await status(uuid.UUID(self.id)) in FINISHED:
                break
            if pause is None:
                why = await sync_to_async(self.why, thread_sensitive=True)()
                raise TimeoutError(f"Run {self.id} had not finished after {timeout:g} s: {why}")
            await asyncio.sleep(pause)
        await self.arefresh()
        return self

    def cancel(self) -> bool:
        """Cancel the run: at once while it is READY, else its task is interrupted. False when it had finished."""
        return runs.cancel(uuid.UUID(self.id))

    def why(self) -> str:
        """In words, why the run waits, what it does, or how it ended."""
        run = runs.get(uuid.UUID(self.id))
        return "the run was deleted" if run is None else runs.why(run)

    @property
    def output(self) -> str:
        """What the run's attempts printed so far, the newest part where it was long."""
        return runs.output(uuid.UUID(self.id))

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict per attempt: number, status, machine, machine_id, region, pid, claimed_at, started_at, finished_at,
        seconds, stages, exit_event, request_ids, peak_memory_mb, error, diagnosis."""
        return [attempt_as_dict(attempt) for attempt in runs.attempts(uuid.UUID(self.id))]


_REFRESHED = (
    "errors",
    "_return_value",
    "finished_at",
    "started_at",
    "last_attempted_at",
    "status",
    "enqueued_at",
    "worker_ids",
)


def attempt_as_dict(attempt: Any) -> dict[str, Any]:
    """An attempt's row and its machine's, as `history` shows them."""
    machine = attempt.machine
    return {
        "number": attempt.epoch,
        "status": attempt.status,
        "machine": machine.name if machine else "",
        "machine_id": machine.fly_id if machine else "",
        "region": machine.region if machine else "",
        "pid": attempt.pid,
        "claimed_at": attempt.claimed_at,
        "started_at": attempt.claimed_at,
        "finished_at": attempt.finished_at,
        "seconds": attempt.seconds,
        "stages": attempt.stages,
        "exit_event": machine.exit_event if machine else None,
        "request_ids": machine.request_ids if machine else [],
        "peak_memory_mb": attempt.peak_memory_mb,
        "error": attempt.error,
        "diagnosis": attempt.diagnosis,
    }


def _refuse_in_task() -> None:
    if conf.in_machine() and not conf.settings().allow_wait_in_task:
        raise WaitInsideTask(
            "A task waits for another run. When every machine does so, none is left to do the work. Enqueue a task "
            "that goes on from there instead, or set MACHINEQUEUE['ALLOW_WAIT_IN_TASK'] = True."
        )


def _pauses(timeout: float | None) -> Iterator[float | None]:
    """Pauses between looks: a tenth of the time waited so far, so late by a tenth at most. None: time is up."""
    begin = time.monotonic()
    while timeout is None or time.monotonic() - begin < timeout:
        waited = time.monotonic() - begin
        pause = min(max(waited / 10, SHORTEST_POLL), LONGEST_POLL)
        yield pause if timeout is None else min(pause, max(begin + timeout - time.monotonic(), 0.0))
    yield None


@dataclass(frozen=True, kw_only=True)
class MachineTaskContext(AnyTaskContext):  # type: ignore[misc]  # the stubs miss that it is frozen
    """What a task with `takes_context=True` gets first."""

    send: Callable[[dict[str, Any]], None]
    checkpoint: Any = None
    """What an earlier attempt of this run saved last; None when it saved nothing."""

    @property
    def scheduled_at(self) -> datetime | None:
        """The due instant of the schedule's tick that this run is for; None when no schedule enqueued it.

        The same in every attempt, and however late the run starts.
        """
        said: Any = getattr(self.task_result, "metadata", None)
        moment = said.get("scheduled_at") if isinstance(said, dict) else None
        return datetime.fromisoformat(moment) if isinstance(moment, str) else None

    def save_checkpoint(self, value: Any) -> None:
        """Keep a value for the next attempt of this run, should this one be interrupted, lost or fail.

        JSON, at most 1 MB; it replaces the last one. Stored within about a second, and at the latest when the attempt
        ends by an exception, also by the TaskInterruption of a machine that is being stopped. Raises TypeError for
        what JSON cannot carry unchanged, ValueError for what is too large.
        """
        plain = normalize(value, "the checkpoint")
        size = len(sql.dumps(plain).encode())
        if size > LARGEST_CHECKPOINT:
            raise ValueError(
                f"The checkpoint is {size} bytes of JSON, and {LARGEST_CHECKPOINT} is the most: "
                "store it as a file and save its name."
            )
        self.send({"checkpoint": plain})

    def progress(self, current: float, total: float | None = None, message: str = "") -> None:
        """Say how far the run is. Stored at most once a second; cheap to call often."""
        self.send({"progress": {"current": current, "total": total, "message": message}})
