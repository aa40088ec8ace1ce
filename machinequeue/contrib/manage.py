"""Every management command as a task, under its own name: `machinequeue.contrib.manage.clearsessions`.

For commands that nobody declared with `command_task`: machines find by this path what `mq_exec` enqueued.
"""

from typing import Any

from machinequeue.contrib import commands


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return commands.undeclared(name, __name__)
