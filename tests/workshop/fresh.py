"""A task that an older image does not have yet."""

import os

from machinequeue import machine_task

if os.environ.get("FLY_IMAGE_REF") == "workshop:old":
    raise ImportError("this image is older than the task")


@machine_task(queue_name="warm")
def fresh() -> str:
    return os.environ.get("FLY_IMAGE_REF", "")
