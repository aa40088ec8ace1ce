"""The processes below this one: who they are, how much memory they take, and their end.

Needs Linux's /proc. Elsewhere there are no children to be seen, and a task's process group is all that is ended.
"""

import os
import signal
import sys
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from resource import struct_rusage

PR_SET_CHILD_SUBREAPER = 36
SWEEP_SECONDS = 5.0
"""How long strays may take to die; only what waits for a device takes longer than a moment."""
SWEEP_PAUSE = 0.001

_TELLS_CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children").exists()


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process, so that none escapes by forking twice."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal one process; one that is gone is fine."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a task process and all that it started and that did not move to a group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def children(pid: int) -> list[int]:
    """The children of a process, those too that have ended and were not waited for."""
    if not _TELLS_CHILDREN:
        return [each for each, parent in _parents() if parent == pid]
    found: list[int] = []
    with suppress(OSError):  # it ended meanwhile
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - once a run: a Path per entry costs more
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123 - as above
                found += map(int, file.read().split())
    return found


def _parents() -> list[tuple[int, int]]:
    """(pid, parent's pid) of every process, for kernels built without lists of children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found.append((int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])))
    return found


def descendants(pid: int) -> list[int]:
    """Everybody below a process, parents before children."""
    found = children(pid)
    for each in found:
        found += children(each)
    return found


def end_strays(kept: Container[int] = ()) -> None:
    """Kill and reap every child of this process that is not kept, and all below it."""
    ends_at = time.monotonic() + SWEEP_SECONDS
    while strays := [pid for pid in children(os.getpid()) if pid not in kept]:
        for pid in strays:
            for each in (pid, *descendants(pid)):
                kill(each)
        # The children of a stray become ours when it dies, and one may have forked while we looked: look again.
        time.sleep(SWEEP_PAUSE)
        for pid in strays:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > ends_at:
            return


# Memory, in MB --------------------------------------------------------------------------------------------------------


def peak_mb(usage: struct_rusage) -> int:
    """The largest resident size that the kernel noted."""
    return usage.ru_maxrss // (1024 if sys.platform == "linux" else 1024 * 1024)


def resident_mb() -> int:
    """What this process holds now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024)


def forget_peak() -> None:
    """Let the kernel note the largest resident size of this process anew."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def family_mb(pid: int) -> int:
    """What a process and all below it hold together now; 0 when it is alone, for its own peak is known better."""
    below = descendants(pid)
    return sum(map(_proportional_kb, (pid, *below))) // 1024 if below else 0


def _proportional_kb(pid: int) -> int:
    """What one process holds, with each page that it shares divided by those who share it."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
