"""The admin: an operator reads runs, attempts, machines, queues, dispatchers; presses retry, cancel, pause, resume.

It reads rows and calls `records`. It changes nothing by itself and never talks to Fly.
"""

from machinequeue.admin.dispatchers import DispatcherAdmin
from machinequeue.admin.machines import MachineAdmin
from machinequeue.admin.queues import QueueAdmin
from machinequeue.admin.runs import RunAdmin

__all__ = ["DispatcherAdmin", "MachineAdmin", "QueueAdmin", "RunAdmin"]
