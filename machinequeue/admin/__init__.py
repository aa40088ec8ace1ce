"""The admin: an operator reads rows; presses retry, cancel, pause, resume, try again, forget,
run now; adds and edits schedules.

It reads rows and calls `records`. It changes nothing by itself and never talks to Fly.
"""

from machinequeue.admin.backups import BackupAdmin, DrillAdmin
from machinequeue.admin.circuits import CircuitAdmin
from machinequeue.admin.dispatchers import DispatcherAdmin
from machinequeue.admin.machines import MachineAdmin
from machinequeue.admin.profiles import ProfileAdmin
from machinequeue.admin.queues import QueueAdmin
from machinequeue.admin.runs import RunAdmin
from machinequeue.admin.schedules import ScheduleAdmin
from machinequeue.admin.serverless import ServerlessMachineAdmin

__all__ = [
    "BackupAdmin",
    "CircuitAdmin",
    "DispatcherAdmin",
    "DrillAdmin",
    "MachineAdmin",
    "ProfileAdmin",
    "QueueAdmin",
    "RunAdmin",
    "ScheduleAdmin",
    "ServerlessMachineAdmin",
]
