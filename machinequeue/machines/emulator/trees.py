"""Look at a tree of processes through /proc, and end it. Without /proc (macOS) a tree is a process group."""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
HAS_PROC = Path("/proc/self/statm").exists()
PR_SET_CHILD_SUBREAPER = 36
ROUNDS = 2000
PAUSE_SECONDS = 0.002


def become_subreaper() -> None:
    """Adopt the orphans of one's descendants, so that none escapes by forking twice. Linux only."""
    if HAS_PROC:
        _libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None)


def rename(title: str) -> None:
    """Give this process a short name for `ps`. Linux only."""
    if HAS_PROC:
        comm = os.open("/proc/self/comm", os.O_WRONLY)
        os.write(comm, title.encode("ascii"))
        os.close(comm)


def children(pid: int) -> list[int]:
    """The living and the unreaped children of a process, those of all its threads."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # sampled often: a Path per entry costs more
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:  # noqa: PTH123  # as above
                found += map(int, file.read().split())
    except OSError:
        pass  # it ended while we looked
    return found


def descendants(pid: int) -> list[int]:
    """Everybody below a process, parents before children."""
    found = children(pid)
    for each in found:
        found += children(each)
    return found


def resident_bytes(pid: int) -> int:
    """Memory of one process, shared pages counted in full; 0 when it is gone."""
    return int((_read(pid, "statm").split() or ["0", "0"])[1]) * PAGE_BYTES


def proportional_bytes(pid: int) -> int:
    """Memory of one process, shared pages divided by their sharers; 0 when it is gone. Slow: walks its pages."""
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def oom_bias(pid: int) -> int:
    """The process's `oom_score_adj`, -1000 to 1000."""
    return int(_read(pid, "oom_score_adj") or "0")


def _read(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="ascii") as file:  # noqa: PTH123  # sampled often
            return file.read()
    except OSError:
        return ""


def send(pid: int, number: int) -> None:
    """Signal one process; one that is gone already is fine."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def send_group(pid: int, number: int) -> None:
    """Signal the process group that `pid` leads; one that is gone already is fine."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_below(pid: int, *groups: int) -> None:
    """Kill everybody below `pid`, which must be this process, and reap them. `groups` stand in for /proc."""
    if not HAS_PROC:
        for group in groups:
            send_group(group, signal.SIGKILL)
    for _ in range(ROUNDS):
        everybody = descendants(pid)
        for each in everybody:
            send(each, signal.SIGKILL)
        if not _reap() and not everybody:
            return
        # Somebody may have forked while we looked, so nobody is waited for without looking again.
        time.sleep(PAUSE_SECONDS)


def _reap() -> bool:
    """Take note of the dead; whether a child still lives."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
