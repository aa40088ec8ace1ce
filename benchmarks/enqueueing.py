"""a and b: one enqueue beside a raw INSERT and LPUSH, and many beside COPY."""

import time
import uuid
from typing import Any

import psycopg
import redis

from benchmarks.figures import Figure, Row, Section, milliseconds
from benchmarks.ground import Ground, connect

MANY = 2_000
COLUMNS = (
    "id, task, args, kwargs, backend, queue, priority, run_after, spec, spec_key, timeout, max_attempts, "
    "task_attempts, lost_attempts, status, epoch, enqueued_at, reason"
)
SPEC = '{"memory_mb":512,"cpus":1,"cpu_kind":"shared","regions":[],"isolation":"process"}'
MESSAGE = b'["machinequeue.wakeups.wake","2f0f3c2e-9a38-4d4c-8a4f-0c7f5b7c6d11",null,0,0,"default","default"]'


def measure(ground: Ground, *, repetitions: int, calls: int) -> list[Section]:
    """Both questions. No dispatcher runs meanwhile, which would take its part of the processors."""
    from bench_site.tasks import noop

    with connect(ground) as raw, redis.Redis.from_url(ground.redis_url) as client:
        raw.execute("CREATE TABLE bench_run (LIKE machinequeue_taskrun INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        raw.execute("ALTER TABLE bench_run ADD PRIMARY KEY (id)")
        raw.execute("CREATE TABLE bench_indexed (LIKE machinequeue_taskrun INCLUDING ALL)")
        insert, insert_indexed = _Insert(raw, client, "bench_run"), _Insert(raw, client, "bench_indexed")
        singles: dict[str, list[float]] = {"floor": [], "indexed": [], "ours": []}
        many: dict[str, list[float]] = {"floor": [], "indexed": [], "ours": []}
        for repetition in range(repetitions + 1):
            found = {
                "floor": milliseconds(insert, calls),
                "indexed": milliseconds(insert_indexed, calls),
                "ours": milliseconds(noop.enqueue, calls),
            }
            found_many = {
                "floor": _milliseconds(lambda: _copy(raw, "bench_run")),
                "indexed": _milliseconds(lambda: _copy(raw, "bench_indexed")),
                "ours": _milliseconds(lambda: noop.enqueue_many([((number,), {}) for number in range(MANY)])),
            }
            if repetition:  # the first one warms up: plans, connections, caches
                for kept, new in ((singles, found), (many, found_many)):
                    for name, value in new.items():
                        kept[name].append(value)
        raw.execute("DROP TABLE bench_run, bench_indexed")
        raw.execute("DELETE FROM machinequeue_taskrun")
        client.flushdb()
    return [
        _section("a", "one enqueue, with its wake-up", "INSERT and LPUSH", singles, goal=1.6),
        _section("b", f"enqueue_many of {MANY:,}", f"COPY of {MANY:,} rows", many, goal=None),
    ]


def _section(key: str, question: str, floor: str, found: dict[str, list[float]], *, goal: float | None) -> Section:
    plain, indexed, ours = (Figure(tuple(found[name]), "ms") for name in ("floor", "indexed", "ours"))
    rows = [
        Row(f"floor: {floor}, primary key only", plain),
        Row(f"{floor}, with the indexes of a run", indexed, indexed.over(plain)),
        Row("machinequeue", ours, ours.over(plain), goal),
    ]
    return Section(key, question, rows)


def _row(number: int) -> tuple[Any, ...]:
    return (
        uuid.uuid4(),
        "bench_site.tasks.noop",
        f"[{number}]",
        "{}",
        "default",
        "default",
        0,
        SPEC,
        "c" * 16,
        600.0,
        1,
    )


class _Insert:
    """One row, committed, and one message."""

    def __init__(self, raw: psycopg.Connection[Any], client: Any, table: str) -> None:
        self._execute, self._push = raw.execute, client.lpush
        self._statement = (
            f"INSERT INTO {table} ({COLUMNS}) "  # noqa: S608 - ours
            "VALUES (%s, %s, %s, %s, %s, %s, %s, now(), %s, %s, %s, %s, 0, 0, 'READY', 0, now(), '')"
        )

    def __call__(self, number: int) -> None:
        self._execute(self._statement, _row(number))
        self._push("bench:messages", MESSAGE)


def _copy(raw: psycopg.Connection[Any], table: str) -> None:
    columns = "id, task, args, kwargs, backend, queue, priority, spec, spec_key, timeout, max_attempts"
    with raw.transaction(), raw.cursor().copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
        for number in range(MANY):
            copy.write_row(_row(number))


def _milliseconds(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000
