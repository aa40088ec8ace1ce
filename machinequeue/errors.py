"""The exceptions that a user of machinequeue may meet.

MachineQueueError
├── ConfigurationError        a setting is unknown, malformed or contradicts another
├── EnqueueError              a call cannot be enqueued; nothing was written
│   └── InvalidArguments      arguments do not fit the signature, or are not JSON
└── WaitInsideTask            a task waits for another task's result (also a RuntimeError)

TaskInterruption (BaseException) raised *inside* a running task, so that `except Exception` does not swallow it
├── TaskTimeout               the run is over its `timeout`
└── TaskCancelled             somebody asked for the run to be cancelled

RunFailed                     what `TaskError.exception_class` of an ending without an exception of the task's own is
├── RunCancelled, RunExpired, RunTimedOut, RunLost, RunCrashed, TaskNotImportable
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


class TaskNotImportable(RunFailed):
    """The machine could not import the task."""
