"""Out of memory, told by evidence: the kernel counts whom it kills for it, and says how large a process had become."""

import os
from contextlib import suppress

COUNTERS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events")
"""Where the kernel counts them: of the whole machine, and of the container if this is one."""
LARGE = 0.6
"""A process that was killed from outside when it had this share of the machine's memory was killed for it."""


def machine_mb() -> int:
    """The machine's memory; 0 where the platform does not say."""
    said = os.environ.get("FLY_VM_MEMORY_MB", "")
    return int(said) if said.isdecimal() else 0


def kills() -> int:
    """A number that rises with every process that the kernel kills for memory."""
    counted = 0
    for counter in COUNTERS:
        with suppress(OSError), open(counter, "rb") as file:  # noqa: PTH123 - once a run: a Path costs more
            _, named, rest = file.read().partition(b"\noom_kill ")
            counted += int(rest.split(maxsplit=1)[0]) if named else 0
    return counted


def is_large(peak_mb: int | None) -> bool:
    """Whether a process of this peak had most of the machine's memory."""
    return peak_mb is not None and 0 < LARGE * machine_mb() <= peak_mb
