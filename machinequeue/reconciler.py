"""Compare rows with machines and repair: note the gone, end the silent, destroy the leaked.

`survey` reads rows and asks Fly, and says what should be done and why; `Reconciler` does it. An empty list or an API
error is not absence: a machine counts as gone only when Fly says so of its very id. Only machines that carry our
metadata are ever touched.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

from django.db import InterfaceError, OperationalError

from machinequeue import conf
from machinequeue.dispatch.launch import Launcher, log_tail, site
from machinequeue.lifecycle import AttemptStatus, CircuitKind, Failure, MachineStatus
from machinequeue.machines import schema
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.errors import MachinesError, NotFound
from machinequeue.records import Machine, api, circuits, claims, machines, runs
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.reconciler")

ENDED = frozenset({"destroyed", "destroying"})
AT_REST = frozenset({"stopped", "suspended", "failed"})
LEAKED_STATES = frozenset({"created", "starting", "started", "stopping", *AT_REST})
"""Leaked machines are destroyed in these; in others Fly is at work on them, and the next round looks again."""
QUIET_SECONDS = 60.0
"""With no machine in the rows, Fly is asked for leaked ones this often."""
LONGEST_BOOT_FACTOR = 4


Note = Callable[[Machine, str], object]
ClientOf = Callable[[Machine], MachinesClient]


@dataclass(frozen=True)
class Repair:
    """Something that should be done, and why."""

    verb: str
    """adopt, note gone, lose, destroy, give up."""
    subject: str
    """Name of the machine, or id of the run."""
    why: str
    do: Callable[[], object] = field(repr=False)


@dataclass
class Reconciler:
    """One round per call, by the leader; harmless when two lead for a moment."""

    note: Note = machines.seen
    """What is done with the state that Fly reports of a machine."""
    _silent_since: dict[tuple[str, int], float] = field(default_factory=dict)
    """When this process first saw a claim past its lease, on the monotonic clock: a lease that expired while nobody
    reached the database says nothing about its holder."""
    _round_at: float | None = None
    _quiet_until: float = 0.0

    def __call__(self, launcher: Launcher) -> None:
        """Look, and repair what is wrong."""
        for repair in self.survey(launcher):
            try:
                repair.do()
            except MachinesError as error:
                logger.warning("%s of %s failed, which is tried again: %s", repair.verb, repair.subject, error)
            except (OperationalError, InterfaceError):
                raise  # the database is away; nothing else can be repaired either
            except Exception:
                # One machine that cannot be repaired must not keep the others from it.
                logger.exception("%s of %s failed, which is tried again", repair.verb, repair.subject)

    def survey(self, launcher: Launcher) -> Iterator[Repair]:
        """What should be done, most certain first. Each is to be done before the next is asked for."""
        yield from _orphans()
        clients = _clients(launcher)
        rows = machines.live()
        if not rows and time.monotonic() < self._quiet_until:
            return
        self._quiet_until = time.monotonic() + QUIET_SECONDS
        for app, client in clients:
            # Of a machine in another app, Fly would say 404.
            there = [row for row in rows if not app or row.app == app]
            try:
                yield from self._survey_app(app, client, there)
            except MachinesError as error:
                if isinstance(error, NotFound) and client is not launcher.client and not there:
                    continue  # the app is made with its first machine
                emit("api.unreachable", app=app, error=str(error))
                api.failed(app, f"{type(error).__name__}: {error.message}")
                if client is launcher.client:
                    # Without the API nothing can be confirmed or destroyed, and silence may be ours.
                    self._round_at = None
                    return
        yield from _late(launcher.client_of)
        yield from self._silent(launcher.client_of)

    def _survey_app(self, app: str, client: MachinesClient, rows: list[Machine]) -> Iterator[Repair]:
        listed = client.list(metadata={"mq_site": site()})
        api.answered(app)
        by_name = {machine.name: machine for machine in listed}
        for row in rows:
            yield from _compare(client, row, by_name.get(row.name), self.note)
        yield from _leaked(client, listed)

    def _silent(self, client_of: ClientOf) -> Iterator[Repair]:
        """Runs whose holder says nothing although its machine runs, watched by this process for long enough."""
        settings, now = conf.settings(), time.monotonic()
        if self._round_at is None or now - self._round_at > settings.silent_seconds / 2:
            self._silent_since.clear()  # nobody watched meanwhile
        self._round_at = now
        seen: dict[tuple[str, int], float] = {}
        for silent in runs.silent(settings.cancel_seconds):
            key = (str(silent.run_id), silent.epoch)
            seen[key] = self._silent_since.get(key, now)
            deaf = silent.reason != runs.NO_HEARTBEAT
            if deaf or now - seen[key] >= settings.silent_seconds:
                row = machines.get(silent.machine_id)
                if row is not None and row.status != MachineStatus.GONE:
                    yield _give_up(client_of(row), row, silent.reason)
        for row in machines.mute(settings.lease_seconds):
            key = (row.name, 0)
            seen[key] = self._silent_since.get(key, now)
            if now - seen[key] >= settings.silent_seconds:
                does = "is to leave" if row.status == MachineStatus.RETIRING else "waits for work"
                yield _give_up(client_of(row), row, f"it {does} and says nothing")
        self._silent_since = seen


def _clients(launcher: Launcher) -> list[tuple[str, MachinesClient]]:
    """The apps that machines of ours may be in, our own first."""
    settings = conf.settings()
    clients = [(settings.app, launcher.client)]
    if (beside := launcher.container_client()) is not None:
        clients.append((conf.container_app(settings), beside))
    return clients


def _orphans() -> Iterator[Repair]:
    """Attempts that rows say run on a machine that is gone."""
    for run_id, epoch in runs.orphaned():
        why = "its machine is gone"
        failure = Failure(AttemptStatus.LOST, error="machinequeue.errors.RunLost", sentence=why)
        yield Repair("lose", f"{run_id}/{epoch}", why, partial(_lose, run_id, epoch, failure))


def _compare(client: MachinesClient, row: Machine, listed: schema.Machine | None, note: Note) -> Iterator[Repair]:
    if listed is not None:
        if not row.fly_id:
            # The create's answer was lost, or its writer died: the machine is ours by name and metadata.
            known = {"fly_id": listed.id, "region": listed.region, "state": listed.state}
            yield Repair("adopt", row.name, f"Fly has it as {listed.id}", partial(machines.found, row, **known))
        note(row, listed.state)
        if listed.state in AT_REST:
            why = f"it is {listed.state}, and its work is over"
            yield Repair("destroy", row.name, why, partial(client.destroy, listed.id, force=True))
        if listed.state not in ENDED:
            return
    elif not row.fly_id:
        return
    try:
        found = client.get(row.fly_id or (listed.id if listed else ""))
    except NotFound:
        if machines.settled(row):  # just after the create it may only mean "not yet"
            yield Repair(
                "note gone", row.name, "Fly knows it no more", partial(_note_gone, client, row, "unknown", None)
            )
        return
    except MachinesError as error:
        # Of this one nothing is known, which says nothing of the others; its deadline comes all the same.
        logger.info("Machine %s could not be read: %s", row.name, error)
        return
    if found.state == "destroyed":
        event = found.exit_event
        yield Repair("note gone", row.name, _in_words(event), partial(_note_gone, client, row, "destroyed", event))


def _leaked(client: MachinesClient, listed: list[schema.Machine]) -> Iterator[Repair]:
    """Machines of ours whose row is missing or gone: whatever they do, nobody waits for it."""
    alive = {machine.name: machine for machine in listed if machine.state in LEAKED_STATES}
    age = timedelta(seconds=conf.settings().leaked_seconds)
    for name, why in machines.strays([*alive], age).items():
        machine = alive[name]
        young = machine.created_at is not None and machine.created_at > datetime.now(UTC) - age
        if machine.metadata.get("mq_machine") != name or (why == machines.NO_ROW and young):
            continue  # not ours, or its row may be on its way to where we read
        emit("machine.leaked", machine=name, fly_id=machine.id, state=machine.state, reason=why)
        yield Repair("destroy", name, why, partial(client.destroy, machine.id, force=True))


def _late(client_of: ClientOf) -> Iterator[Repair]:
    """Machines past their deadline, and machines that do not check in."""
    settings = conf.settings()
    for row in machines.overdue():
        yield _give_up(client_of(row), row, "it is past its deadline")
    for row, started in machines.unborn(settings.boot_timeout):
        client = client_of(row)
        if row.status == MachineStatus.RETIRING:
            yield _give_up(client, row, row.reason)  # again, until it is gone
        elif started < 0:
            yield _give_up(client, row, f"Fly has not started it within {settings.boot_timeout:g} s", boot_failed=True)
        else:
            failed = circuits.failures(CircuitKind.BOOT, image=row.image, spec_key=row.spec_key)
            allowed = settings.check_in_timeout * min(2**failed, LONGEST_BOOT_FACTOR)
            if started > allowed:
                why = f"it did not check in within {allowed:g} s of its start"
                yield _give_up(client, row, why, boot_failed=True)


def _give_up(client: MachinesClient, row: Machine, why: str, *, boot_failed: bool = False) -> Repair:
    """Destroy a machine. Its runs are lost once Fly confirms that it is gone."""

    def do() -> None:
        retired = machines.retire(row, f"given up: {why}", unborn=boot_failed)
        if not retired and row.status != MachineStatus.RETIRING:
            return  # it has checked in, or gone, since we looked
        if retired:
            emit("machine.overdue", machine=row.name, fly_id=row.fly_id, reason=why)
            if boot_failed and row.fly_id:  # else nothing was there that could boot
                _boot_failed(client, row, why)
        if not row.fly_id:
            machines.gone(row, state="", exit_event=None, reason=f"machine {row.name} was never created")
            return
        client.destroy(row.fly_id, force=True)

    return Repair("give up", row.name, why, do)


def _note_gone(client: MachinesClient, row: Machine, state: str, exit_event: schema.ExitEvent | None) -> None:
    row = machines.get(row.pk) or row  # it may have booted, and worked, since it was read
    event = exit_event.as_dict() if exit_event is not None else None
    sentence = f"machine {row.name} ended: {_in_words(exit_event)}"
    oom = exit_event is not None and exit_event.oom_killed
    failure = Failure(
        AttemptStatus.OUT_OF_MEMORY if oom else AttemptStatus.LOST,
        error=f"machinequeue.errors.{'RunOutOfMemory' if oom else 'RunLost'}",
        sentence=f"ran out of memory at {row.spec['memory_mb']} MB on {row.fly_id}" if oom else sentence,
        exit_code=exit_event.exit_code if exit_event else None,
        remedy="Give the task more memory_mb." if oom else "",
    )
    for run_id, epoch in runs.unfinished_attempts(row.pk):
        _lose(run_id, epoch, failure, machine=row.name)
    if _boot_has_failed(row, exit_event):
        _boot_failed(client, row, f"it ended before it claimed a run ({_in_words(exit_event)})")
    # Last: should this process die before, the next round finds the row and does it all again.
    if machines.gone(row, state=state, exit_event=event, reason=sentence):
        emit("machine.gone", machine=row.name, fly_id=row.fly_id, queue=row.queue)


def _boot_has_failed(row: Machine, exit_event: schema.ExitEvent | None) -> bool:
    """Whether it ended of itself, and came not as far as claiming a run or finding that there is none."""
    if row.status == MachineStatus.RETIRING or (row.booted_at is not None and machines.ever_claimed(row)):
        return False
    fine = exit_event is not None and (exit_event.requested_stop or exit_event.exit_code == 0)
    return not (fine and row.booted_at is not None)


def _lose(run_id: UUID, epoch: int, failure: Failure, machine: str = "") -> None:
    if claims.fail(run_id, epoch, failure, claims.Report()):
        emit("run.lost", run=run_id, machine=machine)


def _boot_failed(client: MachinesClient, row: Machine, why: str) -> None:
    tail = log_tail(client, row.fly_id) if row.fly_id else ""
    said = f"; its log ends: {tail}" if tail else ""
    reason = f"machines do not boot: {row.name}: {why}{said}"
    # Machines that were launched before the last failure was known tell of the same one.
    launched_at = row.requested_at or row.reserved_at
    opened = circuits.failed(CircuitKind.BOOT, reason, image=row.image, spec_key=row.spec_key, launched_at=launched_at)
    emit("machine.boot_failed", machine=row.name, fly_id=row.fly_id, queue=row.queue, reason=why)
    if opened:
        emit("circuit.opened", kind=CircuitKind.BOOT.value, queue=row.queue, reason=reason)


def _in_words(exit_event: schema.ExitEvent | None) -> str:
    if exit_event is None:
        return "Fly keeps no exit event of it"
    if exit_event.oom_killed:
        return "it ran out of memory"
    asked = ", it was asked to stop" if exit_event.requested_stop else ""
    return f"exit code {exit_event.exit_code}{asked}"
