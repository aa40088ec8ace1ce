"""The supervisor: hold one claim while a task process executes it, enforce time, and write the outcome."""

import os
import selectors
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from machinequeue import conf
from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.records import claims
from machinequeue.records.claims import Claim, Report
from machinequeue.runner import task_process
from machinequeue.runner.channel import Closed
from machinequeue.runner.output import Output, pass_on, read_available
from machinequeue.runner.persist import persist
from machinequeue.runner.scribe import Scribe, Watched
from machinequeue.runner.template import Child, Template, kill_group
from machinequeue.telemetry import emit

SHARED_RUNS = 500
"""Runs after which a shared process is replaced."""
SHARED_GROWTH_MB = 128
"""Growth of its memory after which a shared process is replaced."""

GRACE_SECONDS = 10.0
"""What a task gets to end by itself, after it was interrupted, before its process group is killed."""


@dataclass
class Execution:
    """One attempt as it goes on."""

    claim: Claim
    child: Child
    output: Output
    watched: Watched
    begin: float
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
    first_peak_mb: int
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
    settings: conf.Settings = field(default_factory=conf.settings)
    _shared: "_Shared | None" = None

    def __post_init__(self) -> None:
        self.scribe = Scribe(self.settings.lease_seconds, self.settings.heartbeat_seconds)

    def execute(self, claim: Claim) -> Report:
        """Execute a claimed run and record what came of it."""
        execution = self._start(claim)
        self._attend(execution)
        if self.isolation == "process":
            self.template.prepare(claim.task)  # it forks while the outcome is written and the next run claimed
        self.scribe.release()
        if execution.message is None or execution.interrupted:
            self._end_group(execution)
        self._read_output(execution)
        report = self._report(execution)
        recorded = self._record(execution, report)
        with suppress(Closed):
            execution.child.channel.send({"recorded": recorded})
        if not self._keep(execution, report):
            execution.child.close()
        return report

    def _start(self, claim: Claim) -> Execution:
        child = self._process_for(claim)
        child.channel.send(task_process.pack(claim, self.worker_id))
        output = Output(self.settings.output_bytes)
        return Execution(claim, child, output, self.scribe.watch(claim, output, child.pid), time.monotonic())

    def _process_for(self, claim: Claim) -> Child:
        shared, self._shared = self._shared, None
        if shared is not None:
            self.template.listen_now()
            if shared.child.status is None:
                self._shared = shared
                return shared.child
            shared.child.close()
        child = self.template.take(claim.task)
        self.template.wait_pid(child)
        return child

    def _keep(self, execution: Execution, report: Report) -> bool:
        """Whether the process may execute another run: only where runs share one, and nothing went wrong with it."""
        before, self._shared = self._shared, None
        if self.isolation != "shared" or execution.message is None or execution.interrupted or execution.watched.lost:
            return False
        peak = report.peak_memory_mb or 0
        shared = before or _Shared(execution.child, first_peak_mb=peak)
        shared.runs += 1
        if shared.runs >= SHARED_RUNS or peak - shared.first_peak_mb > SHARED_GROWTH_MB:
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
        """Read what there is; False at the end of the pipe, which comes when every holder of it is gone."""
        while True:
            try:
                data = os.read(execution.child.output, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            execution.output.add(data)
            pass_on(data)

    def _read_answer(self, execution: Execution, selector: selectors.BaseSelector) -> None:
        try:
            messages = execution.child.channel.available()
        except Closed:  # it has died; the template will say how
            selector.unregister(execution.child.channel)
            return
        for message in messages:
            if "outcome" in message:
                execution.message = message
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
        with suppress(ProcessLookupError):
            os.kill(execution.child.pid, number)

    def _kill(self, execution: Execution) -> None:
        execution.killed, execution.kill_at = True, None
        kill_group(execution.child.pid)

    def _end_group(self, execution: Execution) -> None:
        """Nothing of the task may run on when its outcome is recorded."""
        if execution.child.status is None:
            self._kill(execution)
            self.template.wait_exit(execution.child)

    # The outcome ----------------------------------------------------------------------------------------------------

    def _report(self, execution: Execution) -> Report:
        message, status = execution.message or {}, execution.child.status
        text, dropped = execution.output.take(last=True)
        return Report(
            pid=execution.child.pid,
            exit_code=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            peak_memory_mb=message.get("peak_memory_mb"),
            seconds=time.monotonic() - execution.begin,
            stages=message.get("stages", {}),
            output=text,
            dropped=dropped,
            progress=execution.watched.progress,
        )

    def _record(self, execution: Execution, report: Report) -> str | None:
        """Write the outcome; the run's status now, or None when the claim was lost."""
        claim = execution.claim
        if execution.message is not None and "value" in execution.message["outcome"]:
            value = execution.message["outcome"]["value"]
            won = persist(lambda: claims.succeed(claim, value, report))
            emit("run.succeeded", run=claim.run_id, task=claim.task, queue=claim.queue, machine=self.worker_id)
            return "SUCCESSFUL" if won else None
        failure = _failure(execution)
        decision = persist(lambda: claims.fail(claim.run_id, claim.epoch, failure, report))
        if decision is None:
            return None
        emit(
            "run.failed",
            run=claim.run_id,
            task=claim.task,
            queue=claim.queue,
            machine=self.worker_id,
            reason=decision.reason,
        )
        return decision.status.value


def _failure(execution: Execution) -> Failure:
    claim, status = execution.claim, execution.child.status
    said = execution.message["outcome"] if execution.message else None
    if execution.interrupted:
        return _interruption(execution, said)
    if said is not None:
        return Failure(**{**said, "status": AttemptStatus(said["status"])})
    how = f"exit code {status}" if (status or 0) >= 0 else f"killed by {signal.Signals(-(status or 0)).name}"
    return Failure(
        AttemptStatus.FAILED,
        error="machinequeue.errors.RunCrashed",
        sentence=f"the process of task {claim.task} ended without a result ({how})",
        remedy="Look for os._exit, a crash in a C extension, or more memory than the machine has.",
    )


def _interruption(execution: Execution, said: dict[str, Any] | None) -> Failure:
    kinds = {
        AttemptStatus.TIMED_OUT: ("RunTimedOut", f"longer than its timeout of {execution.claim.timeout:g} s"),
        AttemptStatus.CANCELLED: ("RunCancelled", "cancelled while it ran"),
        AttemptStatus.INTERRUPTED: ("RunLost", "its machine was stopped"),
    }
    why = execution.interrupted or AttemptStatus.INTERRUPTED
    name, sentence = kinds[why]
    killed = f"; it did not end within {GRACE_SECONDS:g} s and was killed" if execution.killed and said is None else ""
    remedy = "Give the task a longer timeout, or less to do." if why == AttemptStatus.TIMED_OUT else ""
    own = said.get("traceback", "") if said is not None else ""
    return Failure(why, error=f"machinequeue.errors.{name}", sentence=sentence + killed, traceback=own, remedy=remedy)
