"""Metrics for Prometheus, computed from rows when they are asked for.

Nothing is counted in memory, so any number of web processes tell the same. `measure` asks the rows, in a number of
queries that does not grow; `exposition` writes what it found as Prometheus reads it, and needs prometheus-client.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from machinequeue import conf
from machinequeue.errors import ConfigurationError
from machinequeue.lifecycle import DrillStatus
from machinequeue.records import backups, schedules, vitals

PREFIX = "machinequeue_"
WINDOW_SECONDS = 300.0
"""The time over which attempts that ended are counted."""
QUANTILES = (0.5, 0.95, 1.0)


@dataclass
class Family:
    """One metric: its samples are label values, in the order of the labels, and a number."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    counter: bool = False
    samples: list[tuple[tuple[str, ...], float]] = field(default_factory=list)

    def add(self, *values: Any, number: float | None) -> None:
        """A sample; none where there is no number."""
        if number is not None:
            self.samples.append((tuple(str(value) for value in values), float(number)))


LANE = ("backend", "queue")


def measure() -> list[Family]:
    """Every metric as it is now. Raises DatabaseError."""
    return [*_runs(), *_attempts(), *_machines(), *_dispatchers(), *_timetable(), *_backups()]


def _runs() -> Iterator[Family]:
    unfinished = Family("runs", "Runs that are not finished.", (*LANE, "status"))
    for backend, queue, status, many in vitals.runs_by_queue():
        unfinished.add(backend, queue, status.lower(), number=many)
    due = Family("runs_due", "Runs that could start now; queues that are paused have none.", LANE)
    oldest = Family("oldest_due_seconds", "How long the oldest due run has been due; 0 when none is.", LANE)
    found = {(backend, queue): (many, age) for backend, queue, many, age in vitals.due_by_queue()}
    for lane in sorted({*_known_lanes(), *found}):
        many, age = found.get(lane, (0, 0.0))
        due.add(*lane, number=many)
        oldest.add(*lane, number=max(age, 0.0))
    return iter((unfinished, due, oldest))


def _known_lanes() -> list[tuple[str, str]]:
    entries = getattr(settings, "TASKS", {})
    ours = [alias for alias, params in entries.items() if conf.is_ours(params)]
    return [(alias, queue) for alias in ours for queue in conf.policies(alias)]


def _attempts() -> Iterator[Family]:
    ended = vitals.ended(WINDOW_SECONDS)
    outcomes = Family("attempts_ended", "Attempts that ended in the last 5 minutes, by outcome.", (*LANE, "status"))
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for each in ended:
        counts[each.backend, each.queue, each.status.replace(" ", "_")] += 1
    for key, many in sorted(counts.items()):
        outcomes.add(*key, number=many)
    taken = Family("attempt_seconds", "What attempts of the last 5 minutes took.", (*LANE, "quantile"))
    waited = Family("wait_seconds", "How long they had been due before they were claimed.", (*LANE, "quantile"))
    for lane in sorted({(each.backend, each.queue) for each in ended}):
        mine = [each for each in ended if (each.backend, each.queue) == lane]
        for quantile in QUANTILES:
            taken.add(*lane, quantile, number=_quantile([each.seconds for each in mine], quantile))
            waited.add(*lane, quantile, number=_quantile([each.waited for each in mine], quantile))
    succeeded = Family("task_runs_succeeded", "Runs of a task that ever succeeded.", ("task",), counter=True)
    usual = Family("task_usual_seconds", "What a run of a task usually takes.", ("task",))
    for task, many, seconds in vitals.succeeded_by_task():
        succeeded.add(task, number=many)
        usual.add(task, number=seconds)
    return iter((outcomes, taken, waited, succeeded, usual))


def _quantile(values: Sequence[float], quantile: float) -> float:
    """The smallest value that so many of them do not exceed."""
    return sorted(values)[max(math.ceil(quantile * len(values)) - 1, 0)]


def _machines() -> Iterator[Family]:
    live = Family("machines", "Machines that are not gone.", (*LANE, "status"))
    for backend, queue, status, many in vitals.machines_by_queue():
        live.add(backend, queue, status, number=many)
    circuits = Family("circuits", "What holds launches back; an open circuit needs an operator.", ("kind", "state"))
    for kind, is_open, many in vitals.circuits():
        circuits.add(kind, "open" if is_open else "pausing", number=many)
    return iter((live, circuits))


def _dispatchers() -> Iterator[Family]:
    alive, age = vitals.dispatchers()
    dispatchers = Family("dispatchers", "Dispatchers that were seen in the last 15 seconds.")
    dispatchers.add(number=alive)
    seen = Family("dispatcher_age_seconds", "Seconds since a dispatcher was seen; absent when there is none.")
    seen.add(number=age)
    answered = Family("api_answer_age_seconds", "Seconds since the Machines API answered a dispatcher.")
    found = vitals.api(conf.settings().app)
    answered.add(number=found.answered if found is not None else None)
    return iter((dispatchers, seen, answered))


def _timetable() -> Iterator[Family]:
    late = Family("schedule_lateness_seconds", "By how much the tick is late that is overdue the longest.")
    late.add(number=schedules.lateness())
    failing = Family("schedules_failing", "Schedules whose ticks cannot be enqueued.")
    failing.add(number=len(schedules.failing()))
    return iter((late, failing))


def _backups() -> Iterator[Family]:
    labels = ("database",)
    age = Family("backup_age_seconds", "Age of the newest good backup; absent when there is none.", labels)
    size = Family("backup_size_bytes", "Its size, as stored.", labels)
    failed = Family("backup_failed", "1 when the last backup failed, else 0.", labels)
    drilled = Family("drill_age_seconds", "Seconds since the last restore drill; absent when there was none.", labels)
    proven = Family("drill_proven", "1 when it proved that the backup restores, else 0.", labels)
    for database in vitals.backed_up():
        newest, failure, drill = backups.newest(database), backups.last_failure(database), backups.last_drill(database)
        if newest is not None:
            age.add(database, number=backups.age(newest))
            size.add(database, number=newest.size_bytes)
        failed.add(database, number=failure is not None and (newest is None or failure.pk > newest.pk))
        if drill is not None:
            drilled.add(database, number=vitals.drill_age(drill))
            proven.add(database, number=drill.status == DrillStatus.PROVEN)
    return iter((age, size, failed, drilled, proven))


def exposition(families: Iterable[Family] | None, accept: str = "") -> tuple[bytes, str]:
    """What Prometheus reads, and its content type, as the Accept header wants it. None: the database is away.

    Raises ConfigurationError when prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
        from prometheus_client.exposition import choose_encoder
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise ConfigurationError("prometheus-client is not installed: pip install machinequeue[metrics]") from error
    up = Family("database_up", "1 when the database answered this scrape, else 0: then nothing else is told.")
    up.add(number=families is not None)

    class Found(Collector):
        def collect(self) -> Iterator[Any]:
            for family in [up, *(families or ())]:
                kind = CounterMetricFamily if family.counter else GaugeMetricFamily
                metric = kind(f"{PREFIX}{family.name}", family.help, labels=family.labels)
                for values, number in family.samples:
                    metric.add_metric(values, number)
                yield metric

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Found())
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
