"""c: a task on a machine launched for it, beside `manage.py noop` of the same project; and where the time goes."""

import json
import subprocess
import sys
import time
from datetime import datetime
from typing import Any

import psycopg

from benchmarks.figures import Figure, Row, Section
from benchmarks.ground import PROJECT, Ground, connect, wait_for

GOAL = 1.25
STAGES = (
    "enqueue: row written",
    "wake and decide: machine reserved",
    "request prepared",
    "create: process started",
    "set-up: Django and tasks",
    "template forked",
    "check-in",
    "claim",
    "fork and start",
    "prepare",
    "run",
    "recorded",
    "seen by the caller",
)
_TIMES = """
SELECT r.enqueued_at, m.reserved_at, m.requested_at, m.created_at, m.booted_at, a.claimed_at, r.finished_at,
       m.stages, a.stages, m.name
FROM machinequeue_taskrun r
JOIN machinequeue_attempt a ON a.run_id = r.id JOIN machinequeue_machine m ON m.id = a.machine_id
WHERE r.id = %s"""


def measure(ground: Ground, *, repetitions: int) -> Section:
    """Alternating pairs, after one of each that is not counted."""
    noops, colds, stages = [], [], []
    with connect(ground) as raw:
        for repetition in range(repetitions + 1):
            noop = _noop(ground)
            cold, parts = _cold(ground, raw)
            if repetition:
                noops.append(noop)
                colds.append(cold)
                stages.append(parts)
    floor, ours = Figure(tuple(noops), "ms"), Figure(tuple(colds), "ms")
    rows = [Row("floor: manage.py noop", floor), Row("machinequeue, on a new machine", ours, ours.over(floor), GOAL)]
    parts_by_name = {name: Figure(tuple(part[name] for part in stages), "ms") for name in STAGES}
    return Section("c", "cold: enqueue to result on a new machine", rows, parts_by_name)


def _noop(ground: Ground) -> float:
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "manage.py", "noop"], cwd=PROJECT, env=ground.machine_environment(), check=True, timeout=60
    )
    return (time.perf_counter() - begin) * 1000


def _cold(ground: Ground, raw: psycopg.Connection[Any]) -> tuple[float, dict[str, float]]:
    from bench_site.tasks import noop

    begin, called_at = time.perf_counter(), time.time()
    result = noop.enqueue(1)
    wait_for(lambda: _finished(raw, result.id), lambda: result.why() + ground.said("dispatcher"))
    taken = (time.perf_counter() - begin) * 1000
    seen_at = time.time()
    result.refresh()
    if result.status != "SUCCESSFUL":
        raise RuntimeError(f"benchmarks: the run did not succeed: {result.why()}")
    _wait_until_gone(ground, raw)
    return taken, _stages(ground, raw, result.id, called_at, seen_at)


def _finished(raw: psycopg.Connection[Any], run_id: str) -> bool:
    row = raw.execute("SELECT finished_at IS NOT NULL FROM machinequeue_taskrun WHERE id = %s", [run_id]).fetchone()
    return bool(row and row[0])


def _wait_until_gone(ground: Ground, raw: psycopg.Connection[Any]) -> None:
    """What a machine does while it ends is not the next one's time."""

    def gone() -> bool:
        row = raw.execute("SELECT count(*) FROM machinequeue_machine WHERE status <> 'gone'").fetchone()
        return bool(row) and row[0] == 0

    wait_for(gone, lambda: "A machine did not end. " + ground.said("dispatcher"), pause=0.05)


def _stages(
    ground: Ground, raw: psycopg.Connection[Any], run_id: str, called_at: float, seen_at: float
) -> dict[str, float]:
    row = raw.execute(_TIMES, [run_id]).fetchone()
    assert row is not None
    enqueued, reserved, requested, _, booted, claimed, finished = (_seconds(moment) for moment in row[:7])
    of_machine, of_attempt, name = row[7], row[8], row[9]
    started = _started_at(ground, name)
    began = claimed + of_attempt.get("start", 0.0)
    called = began + of_attempt.get("prepare", 0.0)
    moments = (
        called_at,
        enqueued,
        reserved,
        requested,
        started,
        started + of_machine["setup"],
        started + of_machine["template"],
        booted,
        claimed,
        began,
        called,
        called + of_attempt.get("call", 0.0),
        finished,
        seen_at,
    )
    return {name: (after - before) * 1000 for name, before, after in zip(STAGES, moments, moments[1:], strict=False)}


def _seconds(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()


def _started_at(ground: Ground, name: str) -> float:
    """When the emulator started the machine's process, by its journal."""
    for line in ground.emulator.log_path.read_text().splitlines():
        entry = json.loads(line)
        if entry.get("name") == name and entry.get("type") == "start":
            return float(entry["at"])
    raise RuntimeError(f"benchmarks: the emulator's journal does not know machine {name}")
