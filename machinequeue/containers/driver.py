"""The dispatcher's part: look after the machines whose image is not ours.

Such a machine has no runner. The dispatcher that finds it started takes it (one wins), claims a run in its name, sends
the work in by exec, keeps the claim alive, and destroys the machine whatever came of it. Should the dispatcher be
killed, its heartbeats stop: once the claim lease is over and the dispatcher was not seen for a while, another one
destroys the machine, and the reconciler, which sees it gone, gives the run back on the infrastructure budget.
"""

import hashlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from django.db import DatabaseError, InterfaceError, OperationalError, connections

from machinequeue import conf
from machinequeue.containers import work
from machinequeue.dispatch.launch import Launcher
from machinequeue.lifecycle import AttemptStatus, Failure, MachineStatus
from machinequeue.machines import schema
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.errors import MachinesError, NotFound, TooLarge, WaitTimeout
from machinequeue.machines.schema import ExecResult
from machinequeue.payload import scrub
from machinequeue.records import Machine, claims, dispatchers, machines, runs
from machinequeue.records.claims import Claim, Claimant, Report
from machinequeue.runner.persist import persist
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.containers")

WAIT_SECONDS = 60
LOOK_SECONDS = 0.5
"""How often a run that is executed is asked whether it is to be cancelled."""
PLACE_SECONDS = 30
STOP_SECONDS = 5.0
"""Time that runs are given to finish when their dispatcher is asked to stop."""
MARGIN_SECONDS = 15.0
"""A machine that does not answer so long after a run's timeout is destroyed."""
BURY_SECONDS = 5.0
CLOCK_SECONDS = 0.5
"""By so much two clocks may differ on how long a command took."""
AT_WORK = frozenset({"created", "starting", "started"})
"""A machine that was seen started is not over in these: what is read may be a moment old."""
KILLED = 137
OUT_OF_MEMORY = re.compile("Out of memory: Killed process", re.IGNORECASE)


def boot_id_of(dispatcher: str) -> str:
    """What stands in a machine's row for the dispatcher that looks after it."""
    return hashlib.sha256(dispatcher.encode()).hexdigest()[:32]


@dataclass
class Containers:
    """For one dispatcher: a bounded number of threads, each with a machine. See `dispatch.service.Contain`."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _driven: dict[int, threading.Thread] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _buried_at: float = -BURY_SECONDS
    _burial: threading.Thread | None = None

    def __call__(self, launcher: Launcher, dispatcher: str) -> None:
        """Take up machines that wait for it, and destroy those that nobody looks after any more."""
        found = machines.containers()
        with self._lock:
            for row in found:
                if row.status == MachineStatus.CREATED and not row.boot_id:
                    self._take_up(launcher, row, boot_id_of(dispatcher))
            due = time.monotonic() - self._buried_at >= BURY_SECONDS
            self._buried_at = time.monotonic() if due else self._buried_at
            driven = set(self._driven)
        rows = [row for row in found if row.pk not in driven]
        if rows and due and not self._stop.is_set() and (self._burial is None or not self._burial.is_alive()):
            # An API that does not answer must not hold up the dispatcher: others would take it for dead.
            self._burial = threading.Thread(
                target=self._bury, args=(launcher, dispatcher, rows), name="container burials", daemon=True
            )
            self._burial.start()

    def close(self) -> None:
        """Give runs a moment to finish, else give them back."""
        self._stop.set()
        with self._lock:
            threads = list(self._driven.values())
        for thread in threads:
            thread.join()
        if self._burial is not None:
            self._burial.join(STOP_SECONDS)

    def _take_up(self, launcher: Launcher, row: Machine, boot_id: str) -> None:
        if row.pk in self._driven or self._stop.is_set() or len(self._driven) >= conf.settings().container_threads:
            return
        thread = threading.Thread(target=self._drive, args=(launcher, row, boot_id), name=f"container {row.name}")
        self._driven[row.pk] = thread
        thread.start()

    def _drive(self, launcher: Launcher, row: Machine, boot_id: str) -> None:
        try:
            Drive(launcher.client_of(row), row, boot_id, self._stop.is_set).through()
        except MachinesError as error:
            logger.warning("Machine %s could not be looked after, which is tried again: %s", row.name, error)
        except (DatabaseError, InterfaceError) as error:
            emit("database.unreachable", machine=row.name, error=f"{type(error).__name__}: {error}".strip())
        except Exception:
            logger.exception("Looking after machine %s failed.", row.name)
        finally:
            connections.close_all()
            with self._lock:
                self._driven.pop(row.pk, None)

    def _bury(self, launcher: Launcher, dispatcher: str, rows: list[Machine]) -> None:
        try:
            alive = {boot_id_of(name) for name in dispatchers.alive(runs.DISPATCHER_SILENT)} - {boot_id_of(dispatcher)}
            for row in rows:
                if self._stop.is_set():
                    return
                given_up = row.status == MachineStatus.RETIRING
                if not given_up and row.boot_id and machines.abandoned(row, alive):
                    given_up = machines.retire(row, "the dispatcher that looked after it is gone")
                    emit("machine.abandoned", machine=row.name, fly_id=row.fly_id)
                if given_up:
                    _destroy(launcher.client_of(row), row)
        except (DatabaseError, InterfaceError) as error:
            emit("database.unreachable", dispatcher=dispatcher, error=f"{type(error).__name__}: {error}".strip())
        except Exception:
            logger.exception("Destroying machines that nobody looks after failed, which is tried again.")
        finally:
            connections.close_all()


def _destroy(client: MachinesClient, row: Machine) -> None:
    try:
        client.destroy(row.fly_id, force=True)
    except MachinesError as error:
        logger.warning("Machine %s could not be destroyed, which is tried again: %s", row.name, error)


@dataclass
class Drive:
    """One machine, from its start to its end."""

    client: MachinesClient
    row: Machine
    boot_id: str
    stopping: Callable[[], bool]
    starts: tuple[int, int] = (1, 0)
    """The starts and ends of the machine before it was taken: after one more, what was in it is lost."""

    def through(self) -> None:
        """Wait until it runs, take it, execute one run, destroy it."""
        if not self._started():
            return
        self.starts = _starts(self.client.get(self.row.fly_id))
        life = machines.take(self.row, self.boot_id)
        if life is None:
            return  # another dispatcher's, or given up
        try:
            claim = self._claim(life)
            reason = "nothing is ready" if claim is None else "its one run is done"
            if claim is not None:
                Execution(self, claim).through()
            persist(lambda: machines.leaves(self.row.pk, self.boot_id, int(claim is not None), reason))
        finally:
            _destroy(self.client, self.row)

    def _started(self) -> bool:
        begin = time.monotonic()
        while not self.stopping() and time.monotonic() - begin < WAIT_SECONDS:
            try:
                self.client.wait(self.row.fly_id, "started", timeout=2)
            except WaitTimeout:
                continue
            except NotFound:
                return False  # gone, or not visible yet: the reconciler, or another look, will tell
            return True
        return False

    def _claim(self, life: float) -> Claim | None:
        row, lease = self.row, conf.settings().lease_seconds
        by = Claimant(row.pk, self.boot_id, row.backend, row.queue, row.spec_key)
        return claims.claim(by, lease_seconds=lease, life_seconds=life - conf.GRACE_SECONDS)

    def is_same(self) -> bool:
        """Whether the machine still runs as it was taken: what came of a command is worth nothing otherwise."""
        found = self.client.get(self.row.fly_id)
        return found.state in AT_WORK and _starts(found) == self.starts


def _starts(machine: schema.Machine) -> tuple[int, int]:
    """How often it was started, and how often it ended. The event of the first start may be seen late."""
    kinds = [event.type for event in machine.events]
    return max(kinds.count("start"), 1), kinds.count("exit")


@dataclass
class Call:
    """What came of the work, once it is there; filled by a thread that asks no database."""

    done: threading.Event = field(default_factory=threading.Event)
    seconds: float = 0.0
    placed: ExecResult | None = None
    result: ExecResult | None = None
    error: MachinesError | None = None
    ended: bool = False
    """Whether the machine had ended, or was started again, by then."""


class Execution:
    """One claimed run in its machine."""

    def __init__(self, drive: Drive, claim: Claim) -> None:
        self.drive = drive
        self.claim = claim
        self.call = Call()
        self.settings = conf.settings()
        self.seconds = max(1, math.ceil(claim.timeout))

    def through(self) -> None:
        """Send the work in, keep the claim alive meanwhile, write the outcome."""
        emit("run.started", run=self.claim.run_id, machine=self.drive.row.name, attempt=self.claim.epoch)
        thread = threading.Thread(target=self._work, name=f"exec {self.drive.row.name}", daemon=True)
        thread.start()
        interrupted = self._hold()
        if interrupted is not None:
            # First the machine: who is about to be called ended must have ended.
            _destroy(self.drive.client, self.drive.row)
            thread.join(MARGIN_SECONDS)
        if interrupted == AttemptStatus.LOST:
            return  # the claim is another's
        failure = self._failure(interrupted)
        persist(lambda: self._succeed() if failure is None else self._fail(failure))

    # The work, in a thread of its own -------------------------------------------------------------------------------

    def _work(self) -> None:
        client, fly_id, kwargs = self.drive.client, self.drive.row.fly_id, self.claim.kwargs
        begin = time.monotonic()
        try:
            self.call.placed = client.exec(fly_id, work.PLACE, timeout=PLACE_SECONDS, stdin=work.script(kwargs))
            begin = time.monotonic()
            if not self.call.placed.exit_code:
                words = work.command(kwargs)
                self.call.result = client.exec(fly_id, words, timeout=self.seconds, stdin=kwargs["stdin"] or None)
            self.call.seconds = time.monotonic() - begin
            self.call.ended = not self.drive.is_same()
        except MachinesError as error:
            if self.call.result is None:
                self.call.seconds = time.monotonic() - begin
            self.call.error = error
        finally:
            self.call.done.set()

    # The claim ------------------------------------------------------------------------------------------------------

    def _hold(self) -> AttemptStatus | None:
        """Wait for the work; why it was not waited for any longer, LOST when the claim is another's."""
        begin = beat_at = time.monotonic()
        stop_at = math.inf
        longest = self.seconds + PLACE_SECONDS + MARGIN_SECONDS
        while not self.call.done.wait(LOOK_SECONDS):
            now = time.monotonic()
            if self.drive.stopping():
                stop_at = min(stop_at, now + STOP_SECONDS)
            if now >= stop_at:
                return AttemptStatus.INTERRUPTED
            if now - begin > longest:
                return AttemptStatus.TIMED_OUT
            beat = now - beat_at >= self.settings.heartbeat_seconds
            pulse = self._pulse(beat=beat)
            if pulse is None:
                continue
            beat_at = now if beat else beat_at
            if not pulse.held:
                return AttemptStatus.LOST
            if pulse.cancel:
                return AttemptStatus.CANCELLED
        return None

    def _pulse(self, *, beat: bool) -> claims.Pulse | None:
        """None while the database is away: the lease goes on, and may end."""
        try:
            if beat:
                return claims.heartbeat(self.claim, lease_seconds=self.settings.lease_seconds, pid=None)
            return claims.pulse(self.claim)
        except (OperationalError, InterfaceError):
            connections.close_all()
            return None

    # The outcome ----------------------------------------------------------------------------------------------------

    def _failure(self, interrupted: AttemptStatus | None) -> Failure | None:
        call = self.call
        if interrupted is not None and interrupted != AttemptStatus.TIMED_OUT:
            return _interruption(interrupted)
        if interrupted is not None or _is_timeout(call, self.seconds):
            return Failure(
                AttemptStatus.TIMED_OUT,
                error="machinequeue.errors.RunTimedOut",
                sentence=f"the command took longer than its timeout of {self.seconds} s; its machine was destroyed",
                remedy="Give the task a longer timeout, or the command less to do.",
            )
        if isinstance(call.error, TooLarge):
            return _failed(f"it printed too much: {call.error.message}", None, retry=False)
        if call.ended or call.error is not None:
            return self._of_end(call.error)
        if call.placed is not None and call.placed.exit_code:
            return _failed(f"its files could not be made: {call.placed.stderr.strip()[-300:]}", call.placed.exit_code)
        assert call.result is not None
        return self._of_result(call.result)

    def _of_result(self, result: ExecResult) -> Failure | None:
        code = work.exit_code(result)
        if code == KILLED and self._ran_out_of_memory():
            return self._out_of_memory(code)
        if code and self.drive.row.spec["container"]["check"]:
            said = result.stderr.strip().splitlines()
            return _failed(f"the command ended with exit code {code}" + (f": {said[-1][:300]}" if said else ""), code)
        return None

    def _of_end(self, error: MachinesError | None) -> Failure:
        name = self.drive.row.name
        try:
            found = self.drive.client.get(self.drive.row.fly_id)
        except MachinesError as unknown:
            return _lost(f"machine {name} could not be reached: {(error or unknown).message}")
        event = found.exit_event
        if event is not None and (event.oom_killed or (event.exit_code == KILLED and self._ran_out_of_memory())):
            return self._out_of_memory(event.exit_code)
        if found.state not in AT_WORK:
            code = event.exit_code if event is not None else None
            return _lost(f"machine {name} ended while its command ran (exit code {code})")
        if error is None or _starts(found) != self.drive.starts:
            return _lost(f"machine {name} was started again")
        return _lost(f"its command was given up after {self.call.seconds:.1f} s by the API: {error.message}")

    def _ran_out_of_memory(self) -> bool:
        """Whether the machine's log says so; a kill alone says nothing."""
        try:
            pages = self.drive.client.logs(self.drive.row.fly_id)
            return any(OUT_OF_MEMORY.search(line.message) for line in next(pages).lines)
        except (MachinesError, StopIteration):
            return False

    def _out_of_memory(self, code: int | None) -> Failure:
        return Failure(
            AttemptStatus.OUT_OF_MEMORY,
            error="machinequeue.errors.RunOutOfMemory",
            sentence=f"ran out of memory at {self.drive.row.spec['memory_mb']} MB",
            remedy="Give the task more memory_mb.",
            exit_code=code,
        )

    def _report(self) -> Report:
        result = self.call.result
        shown = work.output(result, self.settings.container_output) if result is not None else ""
        code = work.exit_code(result) if result is not None else None
        return Report(exit_code=code, seconds=round(self.call.seconds, 3), output=shown)

    def _succeed(self) -> None:
        assert self.call.result is not None
        value = work.value(self.call.result, self.call.seconds, self.settings.container_output)
        if claims.succeed(self.claim, value, self._report()):
            emit("run.succeeded", run=self.claim.run_id, machine=self.drive.row.name, exit_code=value["exit_code"])

    def _fail(self, failure: Failure) -> None:
        if claims.fail(self.claim.run_id, self.claim.epoch, failure, self._report()):
            emit("run.failed", run=self.claim.run_id, machine=self.drive.row.name, error=failure.sentence)


def _is_timeout(call: Call, seconds: float) -> bool:
    """Whether the command was ended for its time: by the answer, or by the clock when the answer was cut off."""
    if call.placed is None:
        return False
    if call.error is not None:
        # A 408 alone says nothing: Fly is seen to give up an exec long before the time it was asked for. With a result
        # it was the look at the machine after it that failed.
        return call.result is None and call.seconds >= seconds - CLOCK_SECONDS
    return call.result is not None and call.result.exit_signal == 9 and call.seconds >= seconds


def _interruption(status: AttemptStatus) -> Failure:
    if status == AttemptStatus.CANCELLED:
        return Failure(status, error="machinequeue.errors.RunCancelled", sentence="cancelled on request")
    # A dispatcher that is replaced is nobody's fault.
    sentence = "its dispatcher was asked to stop"
    return Failure(status, error="machinequeue.errors.RunLost", sentence=sentence, charged=False)


def _lost(sentence: str) -> Failure:
    return Failure(AttemptStatus.LOST, error="machinequeue.errors.RunLost", sentence=sentence)


def _failed(sentence: str, code: int | None, *, retry: bool | None = None) -> Failure:
    # It may quote what the command wrote, and PostgreSQL stores no NUL.
    sentence = scrub(sentence)
    return Failure(
        AttemptStatus.FAILED, error="machinequeue.errors.RunCrashed", sentence=sentence, exit_code=code, retry=retry
    )
