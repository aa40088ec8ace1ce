"""The supervisor: hold one claim while a task process executes it, enforce time, and write the outcome."""

import os
import select
import selectors
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import InterfaceError, OperationalError

from machinequeue import conf
from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.records import claims, dispatchers
from machinequeue.records.claims import Claim, Report, Saved
from machinequeue.runner import memory, processes, task_process, verdict
from machinequeue.runner.channel import Closed
from machinequeue.runner.output import PIECE, Output, pass_on, read_available
from machinequeue.runner.persist import persist
from machinequeue.runner.scribe import Scribe, Watched
from machinequeue.runner.template import Child, Template
from machinequeue.telemetry import emit

SHARED_RUNS = 500
"""Runs after which a shared process is replaced."""
SHARED_GROWTH_MB = 128
"""Growth of its memory after which a shared process is replaced."""

GRACE_SECONDS = conf.GRACE_SECONDS / 3
"""What a task gets to end by itself, after it was interrupted, before its process group is killed. A third of what a
machine gets that is stopped: the task may have to be killed in that time, and its outcome to be written."""
PIECES = 16
"""Pieces of output read at a time: a task that prints without end must not keep the clock from being looked at."""


@dataclass
class Execution:
    """One attempt as it goes on."""

    claim: Claim
    child: Child
    output: Output
    watched: Watched
    begin: float
    kills_before: int
    """The kernel's count of processes killed for memory, at the begin."""
    interrupted: AttemptStatus | None = None
    """Why the task was interrupted; None while it was not."""
    kill_at: float | None = None
    killed: bool = False
    message: dict[str, Any] | None = None
    """What the task process answered."""


@dataclass
class _Shared:
    """A process that executes one run after the other."""

    child: Child
    first_mb: int
    """What it held after its first run."""
    runs: int = 0


@dataclass
class Supervisor:
    """Executes claims one after the other through a template."""

    template: Template
    worker_id: str
    stopping: Callable[[], bool]
    """Whether the machine was asked to stop."""
    wake_descriptor: int
    """Readable when a signal came."""
    isolation: str = "process"
    image: str = ""
    """What the machine runs because it was current at its launch."""
    outdated: bool = False
    """Whether a run failed for the machine's image, which is not the current one any more."""
    settings: conf.Settings = field(default_factory=conf.settings)
    _shared: "_Shared | None" = None

    def __post_init__(self) -> None:
        self.scribe = Scribe(self.settings.lease_seconds, self.settings.heartbeat_seconds)
        self.template.shared = self.isolation == "shared"

    def execute(self, claim: Claim) -> Report:
        """Execute a claimed run and record what came of it. Raises Closed when the template has died."""
        try:
            return self._execute(claim)
        except Exception as error:
            # A bug of ours, or the template was killed: the run must not wait until its machine is missed.
            self._give_up(claim, error)
            raise

    def _execute(self, claim: Claim) -> Report:
        execution = self._start(claim)
        self._attend(execution)
        if self.isolation == "process" and execution.message is not None and not execution.interrupted:
            with suppress(Closed):  # the outcome comes first; the next run finds out
                self.template.prepare(claim.task)  # it forks while the outcome is written and the next run claimed
        self.scribe.release()
        if execution.message is None or execution.interrupted or execution.watched.lost:
            self._end_process(execution)
        elif self.isolation == "shared":
            with suppress(Closed):
                self.template.sweep()
        self._read_output(execution)
        report = self._report(execution)
        recorded = self._record(execution, report)
        with suppress(Closed):
            execution.child.channel.send({"recorded": recorded})
        if not self._keep(execution):
            execution.child.close()
        return replace(report, succeeded=recorded == "SUCCESSFUL")

    def _give_up(self, claim: Claim, error: Exception) -> None:
        self.scribe.release()
        self.template.close()
        if isinstance(error, OperationalError | InterfaceError):
            return  # the database is away; the claim is lost with the machine
        failure = verdict.given_up(error, claim.task, claim.timeout)
        persist(lambda: claims.fail(claim.run_id, claim.epoch, failure, Report()))
        said = {"run": claim.run_id, "task": claim.task, "queue": claim.queue, "machine": self.worker_id}
        emit("run.lost", **said, reason=failure.sentence)

    def _start(self, claim: Claim) -> Execution:
        output = Output(self.settings.output_bytes)
        watched = self.scribe.watch(claim, output)  # before: importing the task may take long
        child = self._process_for(claim)
        watched.pid = child.pid
        with suppress(Closed):  # it died just now; the template will say how
            child.channel.send(task_process.pack(claim, self.worker_id))
        return Execution(claim, child, output, watched, time.monotonic(), kills_before=memory.kills())

    def _process_for(self, claim: Claim) -> Child:
        shared, self._shared = self._shared, None
        if shared is not None:
            self.template.listen_within(0)
            if shared.child.status is None:
                self._shared = shared
                return shared.child
            shared.child.close()
        return self.template.take(claim.task, claim.timeout)

    def _keep(self, execution: Execution) -> bool:
        """Whether the process may execute another run: only where runs share one, and nothing went wrong with it."""
        before, self._shared = self._shared, None
        if self.isolation != "shared" or execution.message is None or execution.interrupted or execution.watched.lost:
            return False
        holds = execution.message.get("resident_mb", 0)
        shared = before or _Shared(execution.child, first_mb=holds)
        shared.runs += 1
        if shared.runs >= SHARED_RUNS or holds - shared.first_mb > SHARED_GROWTH_MB:
            return False
        self._shared = shared
        return True

    # While it runs --------------------------------------------------------------------------------------------------

    def _attend(self, execution: Execution) -> None:
        """Until the task process has answered or ended."""
        child = execution.child
        with selectors.DefaultSelector() as selector:
            for descriptor in (
                child.channel,
                child.output,
                self.template.channel,
                self.wake_descriptor,
                self.scribe.descriptor,
            ):
                selector.register(descriptor, selectors.EVENT_READ)
            while execution.message is None and child.status is None:
                ready = {key.fileobj for key, _ in selector.select(self._seconds_left(execution))}
                if child.output in ready and not self._read_output(execution):
                    selector.unregister(child.output)
                if child.channel in ready:
                    self._read_answer(execution, selector)
                if self.template.channel in ready:
                    self.template.listen()
                for descriptor in (self.wake_descriptor, self.scribe.descriptor):
                    if descriptor in ready:
                        read_available(descriptor)
                self._enforce(execution)

    def _read_output(self, execution: Execution) -> bool:
        """Read what there is, or much of it; False at the end of the pipe, when every holder of it is gone."""
        for _ in range(PIECES):
            try:
                data = os.read(execution.child.output, PIECE)
            except BlockingIOError:
                return True
            if not data:
                return False
            execution.output.add(data)
            pass_on(data)
        return True

    def _read_answer(self, execution: Execution, selector: selectors.BaseSelector) -> None:
        try:
            messages = execution.child.channel.available()
        except Closed:  # it has died; the template will say how
            selector.unregister(execution.child.channel)
            return
        for message in messages:
            self._take(execution, message)

    def _read_last_answers(self, execution: Execution) -> None:
        """What a process that has ended had said before."""
        channel = execution.child.channel
        with suppress(Closed):
            while select.select([channel.fileno()], [], [], 0)[0]:
                for message in channel.available():
                    self._take(execution, message)

    def _take(self, execution: Execution, message: dict[str, Any]) -> None:
        if "outcome" in message:
            execution.message = message
        elif "checkpoint" in message:
            execution.watched.saved = Saved(message["checkpoint"])
        else:
            execution.watched.progress = message["progress"]

    # Time, cancel, stop ---------------------------------------------------------------------------------------------

    def _seconds_left(self, execution: Execution) -> float:
        at = execution.kill_at if execution.interrupted else execution.begin + execution.claim.timeout
        return max(0.0, (at or time.monotonic() + 1) - time.monotonic())

    def _enforce(self, execution: Execution) -> None:
        now = time.monotonic()
        if execution.watched.lost:
            self._kill(execution)  # somebody else holds the run now
        elif execution.interrupted:
            if execution.kill_at is not None and now >= execution.kill_at:
                self._kill(execution)
        elif execution.watched.cancel:
            self._interrupt(execution, AttemptStatus.CANCELLED, task_process.CANCEL_SIGNAL)
        elif now >= execution.begin + execution.claim.timeout:
            self._interrupt(execution, AttemptStatus.TIMED_OUT, task_process.TIMEOUT_SIGNAL)
        elif self.stopping():
            self._interrupt(execution, AttemptStatus.INTERRUPTED, task_process.STOP_SIGNAL)

    def _interrupt(self, execution: Execution, why: AttemptStatus, number: int) -> None:
        execution.interrupted = why
        execution.kill_at = time.monotonic() + GRACE_SECONDS
        processes.kill(execution.child.pid, number)

    def _kill(self, execution: Execution) -> None:
        execution.killed, execution.kill_at = True, None
        processes.kill_group(execution.child.pid)

    def _end_process(self, execution: Execution) -> None:
        """Nothing of the task may run on when its outcome is recorded."""
        if execution.child.status is None:
            self._kill(execution)
            self.template.wait_exit(execution.child)
        self._read_last_answers(execution)

    # The outcome ----------------------------------------------------------------------------------------------------

    def _report(self, execution: Execution) -> Report:
        message, status = execution.message or {}, execution.child.status
        peaks = (message.get("peak_memory_mb"), execution.child.peak_mb, execution.watched.family_mb)
        text, dropped = execution.output.take(last=True)
        return Report(
            pid=execution.child.pid,
            exit_code=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            peak_memory_mb=max(peak or 0 for peak in peaks) or None,
            seconds=time.monotonic() - execution.begin,
            stages=message.get("stages", {}),
            output=text,
            dropped=dropped,
            progress=execution.watched.progress,
        )

    def _record(self, execution: Execution, report: Report) -> str | None:
        """Write the outcome; the run's status now, or None when the claim was lost."""
        claim, outcome = execution.claim, (execution.message or {}).get("outcome", {})
        said = {"run": claim.run_id, "task": claim.task, "queue": claim.queue, "machine": self.worker_id}
        if execution.watched.lost:
            recorded, reason = None, "another attempt of the run has begun"
        elif "value" in outcome:
            recorded, reason = self._succeed(claim, outcome["value"], report)
        else:
            recorded, reason = self._fail(execution, self._failure(execution, report), report)
        if recorded is None:
            emit("claim.lost", **said, reason=reason)
        else:
            emit("run.succeeded" if "value" in outcome else "run.failed", **said, reason=reason)
        return recorded

    # The answer to a commit may be lost with the connection: the second try finds that the claim is gone, and that it
    # was its own first that ended it.

    def _succeed(self, claim: Claim, value: Any, report: Report) -> tuple[str | None, str]:
        if persist(lambda: claims.succeed(claim, value, report)):
            return "SUCCESSFUL", ""
        return persist(lambda: claims.recorded(claim, AttemptStatus.SUCCEEDED)), ""

    def _fail(self, execution: Execution, failure: Failure, report: Report) -> tuple[str | None, str]:
        claim, watched = execution.claim, execution.watched
        if watched.saved is not None and watched.saved is not watched.saved_stored:
            value = watched.saved.value
            persist(lambda: claims.checkpoint(claim, value))
        decision = persist(lambda: claims.fail(claim.run_id, claim.epoch, failure, report))
        if decision is None:
            return persist(lambda: claims.recorded(claim, failure.status)), failure.sentence
        return decision.status.value, decision.reason

    def _failure(self, execution: Execution, report: Report) -> Failure:
        message = execution.message or {}
        failure = verdict.failure(
            verdict.End(
                task=execution.claim.task,
                timeout=execution.claim.timeout,
                grace=GRACE_SECONDS,
                status=execution.child.status,
                said=message.get("outcome"),
                interrupted=execution.interrupted,
                killed=execution.killed,
                starved=memory.kills() > execution.kills_before,
                large=memory.is_large(report.peak_memory_mb),
                memory_mb=memory.machine_mb(),
                peak_mb=report.peak_memory_mb,
            )
        )
        if message.get("imported", True) or not self._is_outdated():
            return failure
        self.outdated = True
        return replace(failure, charged=False, sentence=f"{failure.sentence} (its image, {self.image}, is not current)")

    def _is_outdated(self) -> bool:
        current = persist(dispatchers.current_image)
        return bool(self.image and current) and self.image != current
