"""How many machines a queue and spec want, from counts and durations. Pure: no database, no clock."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Supply:
    """Machines of one (queue, spec key) that can still take a run, and what others use."""

    coming: int = 0
    """Reserved, created or booted: they will claim when they are up."""
    idle: int = 0
    busy: int = 0
    of_queue: int = 0
    """All machines of the queue that are not gone, whatever their spec."""
    of_all: int = 0


@dataclass(frozen=True)
class Plan:
    """How many machines to launch, and in words why not more."""

    launch: int
    reason: str
    short: int = 0
    """How many more the caps forbid."""


def wanted(due: int, run_seconds: float | None, boot_seconds: float | None) -> int:
    """Machines that finish `due` runs in about the time that a machine takes to boot.

    An unknown run time counts as the boot time, so each run gets a machine.
    """
    if due <= 0:
        return 0
    if run_seconds is None or not boot_seconds:
        return due
    return max(1, math.ceil(min(due, due * run_seconds / boot_seconds)))


def plan(
    due: int,
    supply: Supply,
    *,
    run_seconds: float | None,
    boot_seconds: float | None,
    max_of_queue: int,
    max_of_all: int,
    queue: str = "default",
) -> Plan:
    """The launches that the demand asks for and the caps allow.

    Busy machines count as supply when their runs are usually shorter than a boot.
    """
    soon_free = supply.busy if run_seconds is not None and boot_seconds and run_seconds < boot_seconds else 0
    ready = supply.coming + supply.idle + soon_free
    missing = wanted(due, run_seconds, boot_seconds) - ready
    if missing <= 0:
        return Plan(0, _waits_for(supply, soon_free))
    room_queue = max_of_queue - supply.of_queue
    room_all = max_of_all - supply.of_all
    launch = max(0, min(missing, room_queue, room_all))
    short = missing - launch
    if launch:
        return Plan(launch, "a machine is being launched", short)
    if room_queue <= 0:
        return Plan(0, f"{supply.of_queue} of {max_of_queue} machines busy in queue {queue}", short)
    return Plan(0, f"{supply.of_all} of {max_of_all} machines busy in all queues", short)


def _waits_for(supply: Supply, soon_free: int) -> str:
    if supply.idle:
        return "an idle machine is about to claim it"
    if supply.coming:
        return f"{supply.coming} machine{'s are' if supply.coming > 1 else ' is'} booting"
    return f"{soon_free} busy machine{'s' if soon_free != 1 else ''} will be free soon"
