"""What this computer itself brings: room on its disk, and a clock."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

from machinequeue import conf
from machinequeue.doctor.facts import Facts
from machinequeue.doctor.findings import Blocked, Finding, failure, fine, skipped, warning
from machinequeue.machines.errors import MachinesError
from machinequeue.records import runs

LEAST_FREE_MB = 64
LITTLE_FREE_MB = 512
CLOCK_SECONDS = 2.0
"""What the second of a Date header, and a slow network, cannot explain."""


def disk(facts: Facts) -> Iterator[Finding]:
    """Is STATE_DIR writable, and is there room on its disk?"""
    facts.settings()
    try:
        folder = conf.state_dir()
    except OSError as error:
        yield failure(
            f"STATE_DIR cannot be made: {error.strerror} ({error.filename}).",
            "Set MACHINEQUEUE['STATE_DIR'] to a folder that this user may write to.",
        )
        return
    free = shutil.disk_usage(folder).free // 2**20
    if not os.access(folder, os.W_OK | os.X_OK):
        yield failure(
            f"STATE_DIR {folder} is not writable for this user.",
            "Let the user who runs the site and the dispatcher write to it, or set another MACHINEQUEUE['STATE_DIR'].",
        )
    elif free < LITTLE_FREE_MB:
        said = failure if free < LEAST_FREE_MB else warning
        yield said(f"Only {free} MB are free where STATE_DIR is ({folder}).", "Make room, or set another STATE_DIR.")
    else:
        yield fine(f"{free / 1024:.0f} GB are free in {folder}.")


def clock(facts: Facts) -> Iterator[Finding]:
    """Do the clocks of this computer, the database and the API agree?"""
    found, agreed = [], []
    for whose, ask in (("the database", _of_database), ("the Machines API", _of_api)):
        try:
            offset = ask(facts)
        except (Blocked, MachinesError):
            found.append(skipped(f"The clock of {whose} cannot be read: it does not answer."))
            continue
        if offset is None:
            continue
        if abs(offset.seconds) > CLOCK_SECONDS + offset.doubt:
            found.append(_apart(whose, offset.seconds))
        else:
            agreed.append(f"{whose} by {offset.seconds:+.1f} s")
    if agreed:
        found.append(fine(f"This computer's clock differs from that of {' and '.join(agreed)}."))
    yield from found


def _apart(whose: str, offset: float) -> Finding:
    way = "behind" if offset > 0 else "ahead of"
    return warning(
        f"This computer's clock is {abs(offset):,.0f} s {way} that of {whose}.",
        "Let NTP set the clocks (timedatectl on Linux). Runs go by the database's clock and come to no harm; logs, "
        "tokens and signed addresses do.",
    )


@dataclass(frozen=True)
class _Offset:
    """How far another clock is ahead of this computer's, and how wrong that may be, both in seconds."""

    seconds: float
    doubt: float


def _of_database(facts: Facts) -> _Offset | None:
    if facts.database().vendor != "postgresql":
        return None  # a file has this computer's clock
    runs.database_now()  # connects, in this thread
    before = time.time()
    said = runs.database_now().timestamp()
    return _offset(said, before, time.time())


def _of_api(facts: Facts) -> _Offset | None:
    facts.app()
    before = time.time()
    said = facts.client().clock()
    # The header leaves out what is less than a second.
    return _offset(said.timestamp() + 0.5, before, time.time()) if said is not None else None


def _offset(said: float, before: float, after: float) -> _Offset:
    """Of a clock that was read at some moment between the two."""
    return _Offset(said - (before + after) / 2, (after - before) / 2)
