"""d: round trip of one task to a worker that waits for work, beside Procrastinate and Celery."""

import random
import statistics
import time
from collections.abc import Callable

from benchmarks.contenders import FORKED, SHARED, Celery, Contender, MachineQueue, Procrastinate
from benchmarks.figures import Figure, Row, Section
from benchmarks.ground import PAUSE_SECONDS, Ground, wait_for

WAIT = f"{SHARED}, result.wait()"
PAUSES = (0.002, 0.008)
"""Seconds between round trips: long enough to go idle, and irregular."""


def measure(ground: Ground, *, repetitions: int, calls: int) -> Section:
    """All workers are up; blocks of calls alternate."""
    shared = MachineQueue(ground, "warm_shared")
    contenders: list[Contender] = [shared, MachineQueue(ground, "warm"), Procrastinate(ground), Celery(ground)]
    for contender in contenders:
        contender.start(1)
    calls_by_name: dict[str, Callable[[int], object]] = {c.name: _poller(c) for c in contenders}
    calls_by_name[WAIT] = shared.round_trip
    found: dict[str, list[float]] = {name: [] for name in calls_by_name}
    try:
        for repetition in range(repetitions + 1):
            for name, call in calls_by_name.items():
                taken = _block(call, calls if repetition else 20)
                if repetition:
                    found[name].append(taken)
    finally:
        for contender in contenders:
            contender.stop()
    return _section({name: Figure(tuple(values), "ms") for name, values in found.items()})


def _poller(contender: Contender) -> Callable[[int], object]:
    def round_trip(number: int) -> None:
        done = contender.enqueue(number)
        wait_for(done, lambda: f"{contender.name} did not finish a task.")

    return round_trip


def _block(call: Callable[[int], object], calls: int) -> float:
    """The median round trip, in ms."""
    taken, rnd = [], random.Random(7)
    for number in range(calls):
        begin = time.perf_counter()
        call(number)
        taken.append(time.perf_counter() - begin)
        time.sleep(rnd.uniform(*PAUSES))
    return statistics.median(taken) * 1000


def _section(found: dict[str, Figure]) -> Section:
    peers = (Procrastinate.name, Celery.name)
    rows = [Row(name, found[name]) for name in peers]
    for name, goal in ((SHARED, 1.0), (FORKED, None)):
        rows += [Row(f"{name}, to {peer}", found[name], found[name].over(found[peer]), goal) for peer in peers]
    rows.append(Row(WAIT, found[WAIT]))
    note = (
        f"Callers look every {PAUSE_SECONDS * 1000:g} ms; result.wait() has a rhythm of its own. Peers share processes."
    )
    return Section("d", "warm: enqueue to result on a worker that waits", rows, note=note)
