"""e: how fast two workers empty a queue of no-ops, beside Procrastinate and Celery."""

from benchmarks.contenders import FORKED, SHARED, Celery, Contender, MachineQueue, Procrastinate
from benchmarks.figures import Figure, Row, Section
from benchmarks.ground import Ground, wait_for

WORKERS = 2


def measure(ground: Ground, *, repetitions: int, runs: int) -> Section:
    """Every contender once, then all again in reverse order."""
    contenders: list[Contender] = [
        MachineQueue(ground, "drain_shared"),
        MachineQueue(ground, "drain"),
        Procrastinate(ground),
        Celery(ground),
    ]
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(repetitions):
        for contender in contenders:
            found[contender.name].append(_drain(ground, contender, runs))
        contenders.reverse()
    figures = {name: Figure(tuple(values), "/s") for name, values in found.items()}
    peers = (Procrastinate.name, Celery.name)
    rows = [Row(name, figures[name]) for name in peers]
    for ours in (SHARED, FORKED):
        rows += [Row(f"{ours}, to {peer}", figures[ours], figures[ours].over(figures[peer])) for peer in peers]
    note = "Between the 5 % and the 95 % point, by the times that each stored itself."
    return Section("e", f"drain of {runs:,} no-ops by {WORKERS} workers", rows, note=note)


def _drain(ground: Ground, contender: Contender, runs: int) -> float:
    contender.forget()
    machines = isinstance(contender, MachineQueue)
    if machines:  # a machine is launched by demand; it waits for work before the clock runs
        contender.start(WORKERS)
    contender.enqueue_many(runs)
    if not machines:
        contender.start(WORKERS)
    try:
        wait_for(lambda: contender.count() >= runs, lambda: _stuck(ground, contender), pause=0.1)
        moments = contender.finished()
    finally:
        contender.stop()
    first, last = int(runs * 0.05), int(runs * 0.95)
    rate = (last - first) / (moments[last] - moments[first])
    contender.forget()
    return rate


def _stuck(ground: Ground, contender: Contender) -> str:
    return f"{contender.name} drained {contender.count()} only. {ground.said(contender.name.lower())}"
