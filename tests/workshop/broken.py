"""A task whose module cannot be imported on a machine, only where it was enqueued."""

import os

from machinequeue import machine_task

if os.environ.get("MACHINEQUEUE_MACHINE"):
    raise ImportError("a package is missing in this image")


@machine_task
def unimportable() -> None:
    return None
