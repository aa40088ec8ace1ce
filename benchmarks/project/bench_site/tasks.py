"""The tasks that are measured."""

from machinequeue import machine_task


@machine_task
def noop(number: int) -> int:
    """Gives back what it was given."""
    return number
