"""Faults at named points of machinequeue, asked for by files. Nothing here happens unless WORKSHOP_FAULTS is set.

WORKSHOP_FAULTS names a folder. A test arms a point by a file `<point>` there that holds what is to happen: "kill"
(SIGKILL), "stop" (SIGSTOP) or "lose" (the database's answer is lost: OperationalError). The first process that reaches
the point renames the file to `<point>.fired`, with its process id in it, and suffers; so a fault happens once over all
processes.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Point:
    """Before or after a function of machinequeue; after only when it returned something true."""

    place: str
    """"module:attribute", or "module:Class.attribute"."""
    after: bool = False


ENQUEUER = {
    "enqueue.before_commit": Point("machinequeue.records.runs:create", after=True),
    "enqueue.after_commit": Point("machinequeue.wakeups:wake_soon"),
    "enqueue.before_wakeup": Point("machinequeue.wakeups:wake"),
    "enqueue.after_wakeup": Point("machinequeue.wakeups:wake", after=True),
}
DISPATCHER = {
    "dispatcher.before_reserve": Point("machinequeue.records.queues:reserve"),
    "dispatcher.in_reserve": Point("machinequeue.records.queues:_insert", after=True),
    "dispatcher.after_reserve": Point("machinequeue.records.queues:reserve", after=True),
    "dispatcher.after_requesting": Point("machinequeue.records.machines:requesting", after=True),
    "dispatcher.after_create": Point("machinequeue.machines.client:MachinesClient.create", after=True),
    "dispatcher.after_created": Point("machinequeue.records.machines:created", after=True),
    "dispatcher.leading": Point("machinequeue.records.dispatchers:lead", after=True),
    "reconciler.before_list": Point("machinequeue.machines.client:MachinesClient.list"),
    "reconciler.before_fail": Point("machinequeue.records.claims:fail"),
    "reconciler.after_fail": Point("machinequeue.records.claims:fail", after=True),
    "reconciler.before_gone": Point("machinequeue.records.machines:gone"),
    "reconciler.after_gone": Point("machinequeue.records.machines:gone", after=True),
    "reconciler.before_destroy": Point("machinequeue.machines.client:MachinesClient.destroy"),
}
SCHEDULER = {
    "scheduler.before_tick": Point("machinequeue.records.schedules:take"),
    "scheduler.in_tick": Point("machinequeue.records.runs:create", after=True),
    "scheduler.after_tick": Point("machinequeue.records.schedules:take", after=True),
}
MACHINE = {
    "runner.before_check_in": Point("machinequeue.records.machines:check_in"),
    "runner.after_check_in": Point("machinequeue.records.machines:check_in", after=True),
    "runner.before_claim": Point("machinequeue.records.claims:claim"),
    "runner.after_claim": Point("machinequeue.records.claims:claim", after=True),
    "runner.after_fork": Point("machinequeue.runner.template:Template.take", after=True),
    "runner.before_heartbeat": Point("machinequeue.records.claims:heartbeat"),
    "runner.after_heartbeat": Point("machinequeue.records.claims:heartbeat", after=True),
    "runner.before_success": Point("machinequeue.records.claims:succeed"),
    "runner.after_success": Point("machinequeue.records.claims:succeed", after=True),
    "runner.before_failure": Point("machinequeue.records.claims:fail"),
    "runner.after_failure": Point("machinequeue.records.claims:fail", after=True),
    "runner.before_leaving": Point("machinequeue.records.machines:leaves"),
    "runner.after_leaving": Point("machinequeue.records.machines:leaves", after=True),
    "template.before_fork": Point("machinequeue.runner.template:_fork"),
    "template.after_fork": Point("machinequeue.runner.template:_fork", after=True),
    "task.before_call": Point("machinequeue.runner.task_process:_call"),
    "task.after_call": Point("machinequeue.runner.task_process:_call", after=True),
}

CLOCKS = {"TICK_SECONDS": 0.25, "LEASE_SECONDS": 2.0, "RECONCILE_SECONDS": 0.25}
"""A dispatcher of these tests looks more often, so that a test takes seconds."""
BOOT_PATIENCE = {"failures": 5, "probe_seconds": 3.0, "first_seconds": 0.25}
"""The same for what follows machines that die before they check in."""


def install() -> None:
    """Watch the points of this process, as WORKSHOP_FAULTS asks."""
    folder = os.environ.get("WORKSHOP_FAULTS")
    if not folder:
        return
    points = ENQUEUER
    if os.environ.get("MACHINEQUEUE_MACHINE"):
        points = MACHINE
    elif sys.argv[1:2] == ["mq_dispatcher"]:
        points = {**DISPATCHER, **SCHEDULER}
        _hurry()
    for name, point in points.items():
        _watch(Path(folder) / name, point)


def _hurry() -> None:
    service = import_module("machinequeue.dispatch.service")
    for name, seconds in CLOCKS.items():
        assert hasattr(service, name), f"{service} has no {name} any more"
        setattr(service, name, seconds)
    lifecycle = import_module("machinequeue.lifecycle")
    lifecycle.PATIENCE[lifecycle.CircuitKind.BOOT] = lifecycle.Patience(**BOOT_PATIENCE)


def _watch(file: Path, point: Point) -> None:
    module, _, path = point.place.partition(":")
    owner: Any = import_module(module)
    *outer, attribute = path.split(".")
    for name in outer:
        owner = getattr(owner, name)
    setattr(owner, attribute, _wrapped(owner.__dict__[attribute], file, after=point.after))


def _wrapped(function: Callable[..., Any], file: Path, *, after: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not after:
            _suffer(file)
        value = function(*args, **kwargs)
        if after and value:
            _suffer(file)
        return value

    return wrapper


def _suffer(file: Path) -> None:
    fired = file.with_name(f"{file.name}.fired")
    try:
        file.rename(fired)
    except FileNotFoundError:
        return
    kind = fired.read_text()
    fired.write_text(str(os.getpid()))
    if kind == "lose":
        from django.db import OperationalError

        raise OperationalError("the answer of the database is lost")
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])
