"""A task whose module hangs where a machine imports it."""

import os
import threading

from machinequeue import machine_task

if os.environ.get("MACHINEQUEUE_MACHINE"):
    threading.Event().wait()


@machine_task(timeout=2)
def stuck() -> None:
    return None
