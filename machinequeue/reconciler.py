"""Compare rows with machines and repair: end the silent, note the gone, destroy the leaked.

An empty list or an API error is not absence: a machine counts as gone only when Fly says so of its very id.
Only machines that carry our metadata are ever touched.
"""

import logging

from machinequeue import conf
from machinequeue.dispatch.launch import Launcher, site
from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.machines import schema
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.errors import MachinesError, NotFound
from machinequeue.records import Machine, claims, machines, runs
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.reconciler")

ENDED = frozenset({"destroyed", "destroying"})


def reconcile(launcher: Launcher) -> None:
    """One round, by the leader; harmless when two lead for a moment."""
    rows = machines.live()
    if not rows:
        return
    client = launcher.client
    try:
        listed = client.list(metadata={"mq_site": site()})
        by_name = {machine.name: machine for machine in listed}
        for row in rows:
            _compare(client, row, by_name.get(row.name))
        _destroy_leaked(client, listed)
    except MachinesError as error:
        emit("api.unreachable", error=str(error))
    for row in machines.overdue(conf.settings().boot_timeout):
        _give_up(client, row)


def _compare(client: MachinesClient, row: Machine, listed: schema.Machine | None) -> None:
    if listed is not None:
        if not row.fly_id:
            # The create's answer was lost, or its writer died: the machine is ours by name and metadata.
            machines.found(row, fly_id=listed.id, region=listed.region, state=listed.state)
        machines.seen(row, listed.state)
        if listed.state not in ENDED:
            return
    elif not row.fly_id:
        return
    try:
        found = client.get(row.fly_id or (listed.id if listed else ""))
    except NotFound:
        if machines.settled(row):  # just after the create it may only mean "not yet"
            _note_gone(row, "unknown", None)
        return
    if found.state == "destroyed":
        _note_gone(row, found.state, found.exit_event)


def _note_gone(row: Machine, state: str, exit_event: schema.ExitEvent | None) -> None:
    event = exit_event.as_dict() if exit_event is not None else None
    sentence = f"machine {row.name} ended: {_in_words(exit_event)}"
    oom = exit_event is not None and exit_event.oom_killed
    status = AttemptStatus.OUT_OF_MEMORY if oom else AttemptStatus.LOST
    for run_id, epoch in runs.unfinished_attempts(row.pk):
        failure = Failure(
            status,
            error="machinequeue.errors.RunLost",
            sentence=sentence,
            exit_code=exit_event.exit_code if exit_event else None,
            remedy="Give the task more memory_mb." if oom else "",
        )
        if claims.fail(run_id, epoch, failure, claims.Report()):
            emit("run.lost", run=run_id, machine=row.name)
    # Last: should this process die before, the next round finds the row and does it all again.
    if machines.gone(row, state=state, exit_event=event, reason=sentence):
        emit("machine.gone", machine=row.name, fly_id=row.fly_id, queue=row.queue)


def _in_words(exit_event: schema.ExitEvent | None) -> str:
    if exit_event is None:
        return "Fly keeps no exit event of it"
    if exit_event.oom_killed:
        return "it ran out of memory"
    asked = ", it was asked to stop" if exit_event.requested_stop else ""
    return f"exit code {exit_event.exit_code}{asked}"


def _destroy_leaked(client: MachinesClient, listed: list[schema.Machine]) -> None:
    """Machines of ours whose row is missing or gone: whatever they do, nobody waits for it."""
    running = [machine for machine in listed if machine.state not in ENDED]
    known = machines.known_names([machine.name for machine in running])
    for machine in running:
        if machine.name not in known and machine.metadata.get("mq_machine") == machine.name:
            emit("machine.leaked", machine=machine.name, fly_id=machine.id, state=machine.state)
            client.destroy(machine.id, force=True)


def _give_up(client: MachinesClient, row: Machine) -> None:
    """Destroy a machine past its deadline, or that never checked in. Its runs are lost once Fly confirms."""
    why = "did not check in in time" if row.booted_at is None else "is past its deadline"
    if machines.retire(row, f"machine {row.name} {why}; it is destroyed"):
        emit("machine.overdue", machine=row.name, fly_id=row.fly_id, reason=why)
    if not row.fly_id:
        machines.gone(row, state="", exit_event=None, reason=f"machine {row.name} was never created")
        return
    try:
        client.destroy(row.fly_id, force=True)
    except NotFound:
        _note_gone(row, "unknown", None)
    except MachinesError as error:
        logger.warning("Machine %s could not be destroyed, which is tried again: %s", row.name, error)
