"""machinequeue: a Django task queue that runs each task on a computer launched for it.

Names are imported on first use (PEP 562), so that ``machinequeue.machines`` imports without
Django and nothing here touches models before the app registry is ready.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machinequeue.backend import (
        MachineBackend,
        MachineTask,
        MachineTaskContext,
        MachineTaskResult,
        enqueue_many,
        machine_task,
    )
    from machinequeue.containers import ContainerTask, container_task
    from machinequeue.contrib.commands import command_task
    from machinequeue.errors import (
        CommandFailed,
        EnqueueError,
        InvalidArguments,
        InvalidSchedule,
        MachineQueueError,
        TaskCancelled,
        TaskInterruption,
        TaskTimeout,
        WaitInsideTask,
    )
    from machinequeue.schedules import schedule
    from machinequeue.timetable import Crontab, crontab

__version__ = "0.1.0"

_HOMES = {
    "ContainerTask": "containers",
    "MachineBackend": "backend",
    "MachineTask": "backend",
    "MachineTaskContext": "backend",
    "MachineTaskResult": "backend",
    "container_task": "containers",
    "enqueue_many": "backend",
    "machine_task": "backend",
    "command_task": "contrib.commands",
    "CommandFailed": "errors",
    "EnqueueError": "errors",
    "InvalidArguments": "errors",
    "InvalidSchedule": "errors",
    "MachineQueueError": "errors",
    "TaskCancelled": "errors",
    "TaskInterruption": "errors",
    "TaskTimeout": "errors",
    "WaitInsideTask": "errors",
    "schedule": "schedules",
    "Crontab": "timetable",
    "crontab": "timetable",
}

__all__ = [
    "CommandFailed",
    "ContainerTask",
    "Crontab",
    "EnqueueError",
    "InvalidArguments",
    "InvalidSchedule",
    "MachineBackend",
    "MachineQueueError",
    "MachineTask",
    "MachineTaskContext",
    "MachineTaskResult",
    "TaskCancelled",
    "TaskInterruption",
    "TaskTimeout",
    "WaitInsideTask",
    "command_task",
    "container_task",
    "crontab",
    "enqueue_many",
    "machine_task",
    "schedule",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"machinequeue.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'machinequeue' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
