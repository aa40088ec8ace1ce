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
    from machinequeue.errors import (
        EnqueueError,
        InvalidArguments,
        MachineQueueError,
        TaskCancelled,
        TaskTimeout,
        WaitInsideTask,
    )

__version__ = "0.1.0"

_HOMES = {
    "MachineBackend": "backend",
    "MachineTask": "backend",
    "MachineTaskContext": "backend",
    "MachineTaskResult": "backend",
    "enqueue_many": "backend",
    "machine_task": "backend",
    "EnqueueError": "errors",
    "InvalidArguments": "errors",
    "MachineQueueError": "errors",
    "TaskCancelled": "errors",
    "TaskTimeout": "errors",
    "WaitInsideTask": "errors",
}

__all__ = [
    "EnqueueError",
    "InvalidArguments",
    "MachineBackend",
    "MachineQueueError",
    "MachineTask",
    "MachineTaskContext",
    "MachineTaskResult",
    "TaskCancelled",
    "TaskTimeout",
    "WaitInsideTask",
    "enqueue_many",
    "machine_task",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"machinequeue.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'machinequeue' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
