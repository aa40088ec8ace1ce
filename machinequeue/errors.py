"""The exceptions that a user of machinequeue may meet.

MachineQueueError
├── ConfigurationError        a setting is unknown, malformed or contradicts another
├── InvalidSchedule           a schedule that can never be due (also a ValueError)
├── CommandFailed             a management command on a machine ended without an exception that could be passed on
├── EnqueueError              a call cannot be enqueued; nothing was written
│   └── InvalidArguments      arguments do not fit the signature, or are not JSON
├── BackupError
│   ├── BackupFailed          a backup could not be made; the storage holds nothing of it
│   ├── BackupRefuted         a stored backup is not what was written, or does not restore to it
│   └── NotProven             whether a stored backup restores could not be found out here
└── WaitInsideTask            a task waits for another task's result (also a RuntimeError)

TaskInterruption (BaseException) raised *inside* a running task, so that `except Exception` does not swallow it
├── TaskTimeout               the run is over its `timeout`
└── TaskCancelled             somebody asked for the run to be cancelled

RunFailed                     what `TaskError.exception_class` of an ending without an exception of the task's own is
├── RunCancelled, RunExpired, RunTimedOut, RunLost, RunCrashed, RunOutOfMemory, RunRefused, TaskNotImportable
"""

from django.core.exceptions import ImproperlyConfigured


class MachineQueueError(Exception):
    """Base of the errors that machinequeue raises in the caller."""


class ConfigurationError(MachineQueueError, ImproperlyConfigured):
    """A setting is unknown, malformed, missing or contradicts another."""


class EnqueueError(MachineQueueError):
    """The call cannot be enqueued. Nothing was written."""


class InvalidArguments(EnqueueError, TypeError):
    """The arguments do not fit the task's signature, or JSON cannot carry them unchanged."""


class BackupError(MachineQueueError):
    """Something about a backup; the text says what, and what to do."""


class BackupFailed(BackupError):
    """The backup could not be made. What the storage got of it was removed, or will be by the next one."""


class BackupRefuted(BackupError):
    """A stored backup is damaged, or restores to something else than was backed up."""


class NotProven(BackupError):
    """Whether a stored backup restores could not be found out here."""


class InvalidSchedule(MachineQueueError, ValueError):
    """A schedule that can never be due, or whose call could not be enqueued. The text says what to change."""


class CommandFailed(MachineQueueError):
    """A management command ended by a signal, with an exit code, or with an exception that cannot be passed on."""

    def __init__(self, message: str, exit_code: int = 1, signal: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.signal = signal


class WaitInsideTask(MachineQueueError, RuntimeError):
    """A task waits for another run's result, which can deadlock when all machines do so."""


class TaskInterruption(BaseException):
    """Raised in a running task from outside; a BaseException, so that `except Exception` lets it pass."""


class TaskTimeout(TaskInterruption):
    """The run took longer than its timeout."""


class TaskCancelled(TaskInterruption):
    """The run was asked to stop."""


class RunFailed(Exception):
    """A run ended without an exception of its own; the text says why."""


class RunCancelled(RunFailed):
    """The run was cancelled."""


class RunExpired(RunFailed):
    """The run was not started before `expires`."""


class RunTimedOut(RunFailed):
    """The run's process was ended because it was over its timeout."""


class RunLost(RunFailed):
    """The run's machine disappeared while it ran, too often."""


class RunCrashed(RunFailed):
    """The run's process ended without a result: a crash, `os._exit` or a kill."""


class RunRefused(RunFailed):
    """The run asked for a machine that Fly does not offer."""


class RunOutOfMemory(RunFailed):
    """The run's process, or a process that it started, was killed because the machine's memory was full."""


class TaskNotImportable(RunFailed):
    """The machine could not import the task."""
