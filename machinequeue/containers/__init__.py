"""Run code that is not ours: any image and command, on a machine in an app of its own, owned by a dispatcher.

`task` is what users call and what web processes import; `driver` is the dispatcher's part, and talks to Fly.
"""

from machinequeue.containers.task import ContainerTask, container_task

__all__ = ["ContainerTask", "container_task"]
