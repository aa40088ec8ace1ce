"""Schedules: their rows as code and operators set them, and their ticks, each won once."""

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Coalesce, Now
from django.utils.dateparse import parse_datetime

from machinequeue import timetable
from machinequeue.errors import InvalidSchedule
from machinequeue.lifecycle import Misfire, RunStatus
from machinequeue.models import Schedule, ScheduleTick
from machinequeue.records import runs, sql

KEPT_TICKS = 1000
"""So many newest ticks of each schedule are kept, whatever their age."""
KEPT_FOR = timedelta(hours=1)
"""So long every tick is kept, however many there are."""
LATE_SECONDS = 60.0
_MOMENTS = ("at", "start_at", "end_at")
_UNFINISHED = (RunStatus.READY, RunStatus.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What code declares, or an operator sets: the columns of a schedule that say what is enqueued, and when."""

    task: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    cron: str = ""
    every_seconds: float | None = None
    at: datetime | None = None
    timezone: str = "UTC"
    start_at: datetime | None = None
    end_at: datetime | None = None
    jitter_seconds: float = 0.0
    queue: str = ""
    options: dict[str, Any] | None = None
    misfire: str = Misfire.LATEST.value
    misfire_limit: int = 100
    max_running: int = 0
    enabled: bool = True

    def as_json(self) -> dict[str, Any]:
        """As `declared` keeps it."""
        values = asdict(self)
        return values | {name: values[name].isoformat() if values[name] else None for name in _MOMENTS}


COLUMNS = tuple(column.name for column in fields(Entry))


def entry_of(row: Schedule) -> Entry:
    """What counts for this row."""
    return Entry(**{name: getattr(row, name) for name in COLUMNS})


def declared_of(row: Schedule) -> Entry | None:
    """What the code says of this row; None when it says nothing."""
    if row.declared is None:
        return None
    known = {name: value for name, value in row.declared.items() if name in COLUMNS}
    return Entry(**known | {name: parse_datetime(known[name]) for name in _MOMENTS if known.get(name)})


def rule_of(entry: Entry | Schedule) -> timetable.Rule:
    """When it is due. Raises InvalidSchedule."""
    given = [value for value in (entry.cron, entry.every_seconds, entry.at) if value not in ("", None)]
    if len(given) != 1:
        raise InvalidSchedule(f"A schedule has one of cron, interval and a single moment; this has {len(given)}.")
    when: timetable.When
    if entry.cron:
        timetable.zone(entry.timezone)
        when = timetable.Crontab(timetable.normal(entry.cron), entry.timezone)
    elif entry.every_seconds is not None:
        when = timetable.interval(entry.every_seconds)
    else:
        when = timetable.checked(entry.at)
    return timetable.Rule(when=when, start=entry.start_at, end=entry.end_at)


def _rows() -> QuerySet[Schedule]:
    return Schedule.objects.using(sql.alias())


def _live() -> QuerySet[Schedule]:
    return _rows().filter(enabled=True, paused_at=None, withdrawn_at=None)


def is_live(row: Schedule) -> bool:
    """Whether it is enabled, not paused, and still in the code if it came from there."""
    return row.enabled and row.paused_at is None and row.withdrawn_at is None


def _next(entry: Entry | Schedule) -> datetime | None:
    return timetable.next_tick(rule_of(entry), runs.database_now())


# As code declares them ----------------------------------------------------------------------------------------------


def declare(name: str, entry: Entry) -> bool:
    """Make the row say what the code says, unless an operator edited it. False when nothing was to be changed.

    Raises InvalidSchedule.
    """
    said = entry.as_json()
    with transaction.atomic(using=sql.alias()):
        row = _locked(name=name)
        if row is None:
            new = Schedule(name=name, **asdict(entry), declared=said, next_at=_next(entry))
            return _insert(new)
        if row.declared == said and row.withdrawn_at is None:
            return False
        by_hand = row.edited or row.declared is None
        change: dict[str, Any] = {"declared": said, "withdrawn_at": None}
        if by_hand:
            change["edited"] = entry_of(row).as_json() != said
        else:
            change |= asdict(entry)
        return _change(row, change)


def withdraw(declared: Iterable[str]) -> list[str]:
    """Disable the schedules that came from code and are not among these names any more; which they are."""
    rows = _rows().filter(declared__isnull=False, withdrawn_at=None).exclude(name__in=list(declared))
    change = {"withdrawn_at": Now(), "revision": F("revision") + 1}
    return [row.name for row in rows if _rows().filter(pk=row.pk, withdrawn_at=None).update(**change)]


# As operators set them ----------------------------------------------------------------------------------------------


def create(name: str, entry: Entry) -> Schedule | None:
    """A schedule of an operator; None when the name is taken. Raises InvalidSchedule."""
    new = Schedule(name=name, **asdict(entry), next_at=_next(entry))
    return _rows().get(name=name) if _insert(new) else None


def edit(pk: int, entry: Entry) -> bool:
    """Let what an operator set count. False when the row is gone. Raises InvalidSchedule.

    One that had vanished from the code is the operator's from now on.
    """
    with transaction.atomic(using=sql.alias()):
        row = _locked(pk=pk)
        if row is None:
            return False
        change = asdict(entry)
        if row.withdrawn_at is not None:
            change |= {"declared": None, "withdrawn_at": None, "edited": False}
        elif row.declared is not None:
            change["edited"] = entry.as_json() != row.declared
        return _change(row, change)


def restore(pk: int) -> bool:
    """Let count again what the code says. False when it says nothing, or nothing else."""
    with transaction.atomic(using=sql.alias()):
        row = _locked(pk=pk)
        said = declared_of(row) if row is not None and row.edited else None
        if row is None or said is None:
            return False
        return _change(row, asdict(said) | {"edited": False})


def set_paused(pk: int, *, paused: bool) -> bool:
    """Pause a schedule or let it go on from now: what falls into the pause is left out. False when it was so."""
    with transaction.atomic(using=sql.alias()):
        row = _locked(pk=pk)
        if row is None or (row.paused_at is not None) == paused:
            return False
        return _change(row, {"paused_at": Now() if paused else None})


def delete(pk: int) -> bool:
    """Delete a schedule that no code declares, with its ticks; its runs stay. False when code declares it."""
    mine = Q(declared__isnull=True) | Q(withdrawn_at__isnull=False)
    return bool(_rows().filter(mine, pk=pk).delete()[0])


def _locked(**which: Any) -> Schedule | None:
    # An UPDATE locks on SQLite too.
    rows = _rows().filter(**which)
    return rows.get() if rows.update(revision=F("revision")) else None


def _insert(new: Schedule) -> bool:
    # Another may insert the same name now: the constraint decides, and a conflict must not spoil the transaction.
    known = _rows().filter(name=new.name)
    if known.exists():
        return False
    _rows().bulk_create([new], ignore_conflicts=True)
    return True


_TIMES = ("cron", "every_seconds", "at", "timezone", "start_at", "end_at")


def _change(row: Schedule, change: Mapping[str, Any]) -> bool:
    """Write it. Other times, or a schedule that goes on, count from this moment: what was due before is left out."""
    before = [is_live(row), *(getattr(row, name) for name in _TIMES)]
    for name, value in change.items():
        setattr(row, name, value)
    timed = [is_live(row), *(getattr(row, name) for name in _TIMES)] != before
    fresh = {"last_error": "", "failed_at": None, "revision": F("revision") + 1}
    return bool(_rows().filter(pk=row.pk).update(**change, **fresh, **({"next_at": _next(row)} if timed else {})))


# Ticks --------------------------------------------------------------------------------------------------------------


def due() -> list[Schedule]:
    """The schedules with a tick that has come, the longest due first; each with `now`, the database's clock."""
    return list(_live().filter(next_at__lte=Now()).annotate(now=Now()).order_by("next_at"))


@dataclass(frozen=True)
class Tick:
    """A due instant, and what is to be noted of it."""

    due_at: datetime
    note: str = ""
    runs: bool = True
    """Whether a run is enqueued for it."""


Enqueue = Callable[[datetime], uuid.UUID]


def take(row: Schedule, ticks: list[Tick], next_at: datetime | None, enqueue: Enqueue) -> list[datetime] | None:
    """Win these ticks and enqueue their runs, in one transaction; those that were enqueued. None: the race was lost.

    `row` is as `due()` gave it: whoever moved it on since, or changed it, has won. What `enqueue` raises undoes all.
    """
    database = sql.alias()
    with transaction.atomic(using=database):
        mine = _live().filter(pk=row.pk, revision=row.revision, next_at=row.next_at)
        if not mine.update(next_at=next_at):
            return None
        enqueued = [tick.due_at for tick in ticks if _win(row, tick, enqueue)]
        if ticks:
            last = ticks[-1].due_at
            late = (runs.database_now() - last).total_seconds()
            _rows().filter(pk=row.pk).update(last_due_at=last, last_lateness=late, last_error="", failed_at=None)
        return enqueued


def run_now(pk: int, enqueue: Enqueue, note: str) -> uuid.UUID | None:
    """Enqueue a run beside the timetable, as a tick of this moment; None when the schedule is gone."""
    with transaction.atomic(using=sql.alias()):
        if _locked(pk=pk) is None:
            return None
        now = runs.database_now()
        run_id = enqueue(now)
        ScheduleTick.objects.using(sql.alias()).create(schedule_id=pk, due_at=now, run_id=run_id, note=note)
        return run_id


_INSERT_TICK = """
INSERT INTO machinequeue_scheduletick (schedule_id, due_at, note) VALUES (%s, %s, %s)
ON CONFLICT (schedule_id, due_at) DO NOTHING RETURNING id"""


def _win(row: Schedule, tick: Tick, enqueue: Enqueue) -> bool:
    connection = sql.connection()
    won = sql.fetch(connection, _INSERT_TICK, [row.pk, sql.moment(connection, tick.due_at), tick.note])
    if won is None or not tick.runs:
        return False
    mine = ScheduleTick.objects.using(sql.alias()).filter(pk=won[0])
    if row.max_running and _unfinished(row.pk)[: row.max_running].count() >= row.max_running:
        mine.update(note=f"left out: {row.max_running} of {row.max_running} runs had not finished")
        return False
    mine.update(run_id=enqueue(tick.due_at))
    return True


def _unfinished(pk: int) -> QuerySet[ScheduleTick]:
    return ScheduleTick.objects.using(sql.alias()).filter(schedule_id=pk, run__status__in=_UNFINISHED)


def fault(row: Schedule, reason: str) -> bool:
    """Note why the ticks of a schedule cannot be enqueued: it stays due. False when that is known already."""
    same = _rows().filter(pk=row.pk, revision=row.revision).exclude(last_error=reason)
    return bool(same.update(last_error=reason, failed_at=Coalesce("failed_at", Now())))


def ticks(pk: int, most: int) -> list[ScheduleTick]:
    """The newest ticks of a schedule with their runs, the newest first."""
    rows = ScheduleTick.objects.using(sql.alias()).filter(schedule_id=pk).select_related("run")
    return list(rows.order_by("-due_at")[:most])


# What the leader looks after ----------------------------------------------------------------------------------------


def realign() -> None:
    """Give schedules their next tick again that have none, or one too far ahead because a clock was wrong."""
    now = runs.database_now()
    for row in _live().filter(Q(next_at=None) | Q(next_at__gt=now)):
        try:
            expected = timetable.next_tick(rule_of(row), now)
        except InvalidSchedule as error:
            fault(row, str(error))
            continue
        if row.next_at != expected and (row.next_at is None or expected is None or row.next_at > expected):
            _rows().filter(pk=row.pk, revision=row.revision, next_at=row.next_at).update(next_at=expected)


def prune() -> int:
    """Delete old ticks; how many. The newest stay, and those whose run has not finished."""
    deleted = 0
    for pk in _rows().values_list("pk", flat=True):
        rows = ScheduleTick.objects.using(sql.alias()).filter(schedule_id=pk)
        oldest = rows.order_by("-due_at").values_list("due_at", flat=True)[KEPT_TICKS : KEPT_TICKS + 1]
        for due_at in oldest:
            old = rows.filter(due_at__lte=due_at, won_at__lt=Now() - KEPT_FOR)
            deleted += old.exclude(run__status__in=_UNFINISHED).delete()[0]
    return deleted


# What others ask ----------------------------------------------------------------------------------------------------


def lateness() -> float:
    """By how many seconds the tick is late that is overdue the longest now, of all live schedules; 0 when none is."""
    row = _live().filter(next_at__lte=Now()).annotate(now=Now()).order_by("next_at").first()
    return max(0.0, (row.now - row.next_at).total_seconds()) if row is not None and row.next_at else 0.0


def late(seconds: float = LATE_SECONDS) -> list[str]:
    """The names of the live schedules whose next tick is overdue by more than so many seconds."""
    overdue = _live().filter(next_at__lt=Now() - timedelta(seconds=seconds))
    return list(overdue.order_by("next_at").values_list("name", flat=True))


def failing() -> list[tuple[str, str]]:
    """(name, reason) of the live schedules whose ticks cannot be enqueued."""
    return list(_live().exclude(last_error="").order_by("name").values_list("name", "last_error"))
