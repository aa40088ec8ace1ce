"""machinequeue and its peers behind one interface: enqueue a no-op, see its end, drain many."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

import redis

from benchmarks.ground import Ground, connect, wait_for


class Contender(Protocol):
    """A task queue with its workers, all of them set up from one Django project on the same servers."""

    name: str

    def start(self, workers: int) -> None:
        """Start so many workers, each executing one task at a time."""

    def stop(self) -> None:
        """Stop them."""

    def enqueue(self, number: int) -> Callable[[], bool]:
        """Enqueue one; the function returned says whether its end is visible to the caller."""

    def enqueue_many(self, count: int) -> None:
        """Enqueue them the quickest way that there is."""

    def finished(self) -> list[float]:
        """When each finished run did so, in seconds since the epoch."""

    def count(self) -> int:
        """How many runs have finished."""

    def forget(self) -> None:
        """Delete finished runs."""


FORKED = "machinequeue, a process per run"
SHARED = "machinequeue, a shared process"


class MachineQueue:
    """Machines that wait for work, launched by a run of their queue."""

    def __init__(self, ground: Ground, queue: str) -> None:
        from bench_site import tasks

        self.name = SHARED if queue.endswith("_shared") else FORKED
        self._ground, self._queue = ground, queue
        self._task = tasks.noop.using(queue_name=queue)
        self._raw = connect(ground)

    def start(self, workers: int) -> None:
        """Launch the machines, unless they wait already."""
        if self._idle() < workers:
            self._task.enqueue_many([((number,), {}) for number in range(workers)])
        wait_for(lambda: self._idle() == workers, lambda: self._ground.said("dispatcher"), pause=0.02)
        self.forget()

    def _idle(self) -> int:
        statement = "SELECT count(*) FROM machinequeue_machine WHERE queue = %s AND status = 'idle'"
        return self._number(statement)

    def _number(self, statement: str) -> int:
        row = self._raw.execute(statement, [self._queue]).fetchone()
        assert row is not None
        return int(str(row[0]))

    def stop(self) -> None:
        """They go on waiting."""

    def enqueue(self, number: int) -> Callable[[], bool]:
        """The caller reads the whole result each time it looks."""
        result = self._task.enqueue(number)

        def done() -> bool:
            result.refresh()
            return bool(result.is_finished)

        return done

    def round_trip(self, number: int) -> None:
        """The same by the method that is there for it."""
        self._task.enqueue(number).wait(30)

    def enqueue_many(self, count: int) -> None:
        """With COPY."""
        self._task.enqueue_many([((number,), {}) for number in range(count)])

    def finished(self) -> list[float]:
        """From the runs."""
        statement = "SELECT finished_at FROM machinequeue_taskrun WHERE queue = %s AND status = 'SUCCESSFUL'"
        return sorted(_epoch(moment) for (moment,) in self._raw.execute(statement, [self._queue]))

    def count(self) -> int:
        """Of this queue."""
        statement = "SELECT count(*) FROM machinequeue_taskrun WHERE queue = %s AND finished_at IS NOT NULL"
        return self._number(statement)

    def forget(self) -> None:
        """And count anew."""
        self._raw.execute("UPDATE machinequeue_machine SET launched_for_id = NULL")
        self._raw.execute("DELETE FROM machinequeue_attempt")
        self._raw.execute("DELETE FROM machinequeue_taskrun WHERE queue = %s", [self._queue])


class Procrastinate:
    """Worker processes of concurrency 1 that LISTEN on PostgreSQL."""

    name = "Procrastinate"

    def __init__(self, ground: Ground) -> None:
        from peers.tasks import noop_procrastinate
        from procrastinate.contrib.django.models import ProcrastinateJob

        self._ground, self._task, self._jobs = ground, noop_procrastinate, ProcrastinateJob.objects
        self._raw = connect(ground)
        self._workers: list[Any] = []

    def start(self, workers: int) -> None:
        """So many processes."""
        command = ("manage.py", "procrastinate", "worker", "--concurrency", "1")
        self._workers = [self._ground.start(*command, name="procrastinate") for _ in range(workers)]

    def stop(self) -> None:
        """All of them."""
        for worker in self._workers:
            self._ground.stop(worker)
        self._workers = []

    def enqueue(self, number: int) -> Callable[[], bool]:
        """It stores no return value, so the caller looks at the status only."""
        job = self._task.defer(number=number)
        return lambda: self._jobs.filter(id=job, status="succeeded").exists()

    def enqueue_many(self, count: int) -> None:
        """In one statement."""
        self._task.batch_defer(*({"number": number} for number in range(count)))

    def finished(self) -> list[float]:
        """From its log of events."""
        rows = self._raw.execute("SELECT at FROM procrastinate_events WHERE type = 'succeeded'")
        return sorted(_epoch(moment) for (moment,) in rows)

    def count(self) -> int:
        """Of all jobs."""
        return int(self._jobs.filter(status="succeeded").count())

    def forget(self) -> None:
        """Empty its tables."""
        self._raw.execute("TRUNCATE procrastinate_jobs, procrastinate_events, procrastinate_periodic_defers CASCADE")


class Celery:
    """A prefork pool, Redis as broker and for results."""

    name = "Celery"

    def __init__(self, ground: Ground) -> None:
        from peers.tasks import noop_celery

        self._ground, self._task = ground, noop_celery
        self._results = redis.Redis.from_url(ground.results_url)
        self._worker: Any = None
        self.forget()
        self._held = self._results.dbsize()

    def start(self, workers: int) -> None:
        """One pool of so many processes."""
        command = ("-m", "celery", "--app", "peers.celery", "worker", "--concurrency", str(workers))
        self._worker = self._ground.start(*command, name="celery")

    def stop(self) -> None:
        """The pool."""
        if self._worker is not None:
            self._ground.stop(self._worker)
            self._worker = None

    def enqueue(self, number: int) -> Callable[[], bool]:
        """The result in Redis."""
        return self._task.delay(number).ready  # type: ignore[no-any-return]

    def enqueue_many(self, count: int) -> None:
        """It has no bulk call that is quicker."""
        for number in range(count):
            self._task.delay(number)

    def finished(self) -> list[float]:
        """From the results."""
        values = (self._results.get(key) for key in self._results.scan_iter("celery-task-meta-*", count=1000))
        return sorted(datetime.fromisoformat(json.loads(value)["date_done"]).timestamp() for value in values if value)

    def count(self) -> int:
        """Keys beside those that were there before."""
        return int(self._results.dbsize()) - self._held

    def forget(self) -> None:
        """Delete the results."""
        keys = list(self._results.scan_iter("celery-task-meta-*", count=1000))
        if keys:
            self._results.delete(*keys)


def _epoch(moment: Any) -> float:
    return float(moment.timestamp())
