"""The public API: `@machine_task`, the task, its result, its context, and the django.tasks backend.

It writes rows and sends a wake-up after the commit. It never talks to Fly.
"""

from machinequeue.backend.engine import MachineBackend
from machinequeue.backend.result import MachineTaskContext, MachineTaskResult
from machinequeue.backend.task import MachineTask, enqueue_many, machine_task, registered

__all__ = [
    "MachineBackend",
    "MachineTask",
    "MachineTaskContext",
    "MachineTaskResult",
    "enqueue_many",
    "machine_task",
    "registered",
]
