"""The tasks that are measured."""

from machinequeue import machine_task


@machine_task
def noop(number: int) -> int:
    """On a machine launched for it."""
    return number


@machine_task(queue_name="warm")
def noop_warm(number: int) -> int:
    """On the one machine that waits for work."""
    return number


@machine_task(queue_name="drain")
def noop_drain(number: int) -> int:
    """On one of two machines."""
    return number
