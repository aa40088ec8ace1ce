"""Keep the timetable's rows and enqueue every due tick exactly once.

`schedule()` and `@machine_task(schedule=...)` declare; `synchronise` makes rows of what is declared; `enqueue_due` is
what a dispatcher does each second.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from importlib import import_module
from typing import Any
from uuid import UUID

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError, ProgrammingError
from django.utils.module_loading import import_string, module_has_submodule

from machinequeue import conf, timetable
from machinequeue.backend import MachineBackend, registered
from machinequeue.compat import AnyTask, InvalidTask, Task
from machinequeue.errors import ConfigurationError, InvalidArguments, InvalidSchedule, MachineQueueError
from machinequeue.lifecycle import Misfire
from machinequeue.payload import NotStorable, normalize, scrub
from machinequeue.records import Schedule, dispatchers, runs, schedules
from machinequeue.records.schedules import Entry, Tick
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.schedules")

MODULES = ("tasks", "schedules")
OPTIONS = (*conf.TASK_OPTIONS, "priority")
ON_TIME = timedelta(seconds=10)
"""Ticks that are not older were not missed: all of them are enqueued, whatever the policy."""
MOST_ON_TIME = 100
MOST_MISSED = 1000
"""Runs that one schedule may make up for: all of them are enqueued in one transaction."""
SKIPPED_AFTER = timedelta(seconds=60)
KEEP_SECONDS = 60.0
LONGEST_REASON = 2000
LONGEST_NAME = 255


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A schedule as the code declares it."""

    name: str
    task: str
    """Path of the task."""
    when: timetable.When
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    start: datetime | None = None
    end: datetime | None = None
    jitter: float = 0.0
    queue: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    misfire: Misfire = Misfire.LATEST
    misfire_limit: int = 100
    max_running: int = 0
    enabled: bool = True


_declared: dict[str, Declaration] = {}


def schedule(  # noqa: PLR0913 - all but two are named
    name: str,
    task: AnyTask | str,
    *,
    every: timedelta | None = None,
    cron: timetable.Crontab | str | None = None,
    at: datetime | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    jitter: float = 0.0,
    queue: str = "",
    misfire: str = "latest",
    misfire_limit: int = 100,
    max_running: int = 0,
    enabled: bool = True,
    **options: Any,
) -> Declaration:
    """Declare a schedule, in a module that Django imports: an app's `tasks`, say.

    `task` is a task or its path. One of `every` (an interval), `cron` (a crontab() or its text) and `at` (one moment)
    says when; `start` and `end` bound it. `jitter` puts each run off by up to so many seconds. `queue` and the options
    of a task's machine (memory_mb, cpus, timeout, ...) override the task's own. `misfire` says what becomes of ticks
    that were missed: "latest" (one run), "all" (at most `misfire_limit`) or "skip". While `max_running` runs of the
    schedule have not finished, ticks are left out; 0 is no limit.

    Declared again under the same name, it replaces the one before. Raises InvalidSchedule.
    """
    for option in options:
        if option not in OPTIONS:
            hint = conf.suggest(option, (*(schedule.__kwdefaults__ or ()), *OPTIONS))
            raise InvalidSchedule(f"Schedule {name!r} has no option {option!r}.{hint}")
    declared = Declaration(
        name=_name(name),
        task=_path(name, task),
        when=_when(name, every, cron, at),
        args=tuple(args),
        kwargs=dict(kwargs or {}),
        start=_moment(name, "start", start),
        end=_moment(name, "end", end),
        jitter=float(jitter),
        queue=queue,
        options=dict(options),
        misfire=_misfire(name, misfire),
        misfire_limit=misfire_limit,
        max_running=max_running,
        enabled=enabled,
    )
    _declared[name] = declared
    return declared


def _name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise InvalidSchedule(f"The name of a schedule is a text of 1 to {LONGEST_NAME} characters, not {name!r:.80}.")
    return name


def _moment(name: str, place: str, value: Any) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidSchedule(
            f"The {place} of schedule {name!r} is a datetime with a time zone, such as "
            f"datetime(2026, 1, 31, tzinfo=datetime.UTC), not {value!r:.80}."
        )
    return value


def _path(name: str, task: Any) -> str:
    if isinstance(task, Task):
        return task.module_path
    if isinstance(task, str):
        return task
    raise InvalidSchedule(f"Schedule {name!r} needs a task made with @machine_task, or its path, not {task!r:.80}.")


def _when(name: str, every: Any, cron: Any, at: Any) -> timetable.When:
    given = [value for value in (every, cron, at) if value is not None]
    if len(given) != 1:
        raise InvalidSchedule(f"Schedule {name!r} needs one of every=, cron= and at=; {len(given)} are given.")
    try:
        return timetable.checked(timetable.crontab(cron) if isinstance(cron, str) else given[0])
    except InvalidSchedule as error:
        raise InvalidSchedule(f"Schedule {name!r}: {error}") from None


def _misfire(name: str, value: str) -> Misfire:
    if value not in Misfire.values:
        hint = conf.suggest(str(value), Misfire.values)
        raise InvalidSchedule(f"Schedule {name!r}: misfire is {value!r}.{hint}")
    return Misfire(value)


# What the code declares ---------------------------------------------------------------------------------------------


def discover() -> list[str]:
    """Import the modules `tasks` and `schedules` of every app; in sentences, which could not be imported."""
    problems = []
    for app in apps.get_app_configs():
        for name in MODULES:
            if not module_has_submodule(app.module, name):
                continue
            try:
                import_module(f"{app.name}.{name}")
            except Exception as error:
                # One app's broken module must not keep the schedules of the others from being due.
                problems.append(f"{app.name}.{name} cannot be imported: {type(error).__name__}: {error}")
    return problems


def choices() -> list[str]:
    """The paths of the tasks that may be scheduled: those that this process knows and that run on machines."""
    _discover_once()
    return sorted(path for path, task in registered().items() if isinstance(task.get_backend(), MachineBackend))


def declarations() -> dict[str, Declaration]:
    """What this process has imported, by name: `schedule()` and, by its path, `@machine_task(schedule=...)`."""
    of_tasks = {path: getattr(task, "schedule", None) for path, task in registered().items()}
    found = {path: Declaration(name=path, task=path, when=when) for path, when in of_tasks.items() if when}
    return {**found, **_declared}


def entry_of(declared: Declaration) -> Entry:
    """A declaration as the columns of its row. Raises InvalidSchedule."""
    when = declared.when
    zone = (when.timezone if isinstance(when, timetable.Crontab) else "") or settings.TIME_ZONE
    try:
        args = [normalize(value, f"args[{index}]") for index, value in enumerate(declared.args)]
        kwargs = {name: normalize(value, name) for name, value in declared.kwargs.items()}
        options = normalize(dict(declared.options), "options")
    except NotStorable as error:
        raise InvalidSchedule(str(error)) from None
    return Entry(
        task=declared.task,
        args=args,
        kwargs=kwargs,
        cron=when.expression if isinstance(when, timetable.Crontab) else "",
        every_seconds=when.total_seconds() if isinstance(when, timedelta) else None,
        at=when if isinstance(when, datetime) else None,
        timezone=zone,
        start_at=declared.start,
        end_at=declared.end,
        jitter_seconds=declared.jitter,
        queue=declared.queue,
        options=options or None,
        misfire=declared.misfire.value,
        misfire_limit=declared.misfire_limit,
        max_running=declared.max_running,
        enabled=declared.enabled,
    )


def wrong_declarations() -> list[tuple[str, str]]:
    """(name, sentence) of what is wrong with the schedules of the code."""
    found = []
    for name, declared in declarations().items():
        try:
            sentences = list(problems(entry_of(declared)).values())
        except MachineQueueError as error:
            sentences = [str(error)]
        found += [(name, sentence) for sentence in sentences]
    return found


# What may be scheduled ----------------------------------------------------------------------------------------------


def problems(entry: Entry) -> dict[str, str]:
    """What is wrong with an entry: sentences by the field that they are about. Empty when it can be enqueued."""
    found = {**_time_problems(entry), **_number_problems(entry)}
    try:
        task = _task(entry.task)
    except InvalidSchedule as error:
        return found | {"task": str(error)}
    try:
        backend: Any = task.get_backend()
    except ImproperlyConfigured as error:
        return found | {"task": str(error)}
    if not isinstance(backend, MachineBackend):
        return found | {"task": f"The backend of {entry.task}, {task.backend!r}, does not run tasks on machines."}
    if wrong := _option_problems(task, entry):
        return found | wrong
    try:
        backend.check_call(task, entry.args, entry.kwargs)
    except InvalidArguments as error:
        found["args"] = str(error)
    except (InvalidTask, ConfigurationError) as error:
        found["task"] = str(error)
    return found


def _task(path: str) -> AnyTask:
    """The task at this path. Raises InvalidSchedule."""
    try:
        found: object = import_string(path)
    except Exception as error:
        # A task's module may raise anything.
        why = f"{type(error).__name__}: {error}".rstrip(".")
        hint = conf.suggest(path, registered())
        raise InvalidSchedule(f"Task {path!r} cannot be imported ({why}). Was it renamed?{hint}") from None
    if not isinstance(found, Task):
        raise InvalidSchedule(f"{path!r} is no task.{conf.suggest(path, registered())}")
    return found


def _time_problems(entry: Entry) -> dict[str, str]:
    named = {"cron": entry.cron, "every_seconds": entry.every_seconds, "at": entry.at}
    place = next((name for name, value in named.items() if value not in ("", None)), "cron")
    if entry.start_at and entry.end_at and entry.end_at < entry.start_at:
        return {"end_at": "It ends before it starts."}
    try:
        timetable.zone(entry.timezone)
    except InvalidSchedule as error:
        return {"timezone": str(error)}
    try:
        schedules.rule_of(entry)
    except InvalidSchedule as error:
        return {place: str(error)}
    return {}


def _number_problems(entry: Entry) -> dict[str, str]:
    found = {}
    if not 0 <= entry.jitter_seconds < float("inf"):
        found["jitter_seconds"] = f"Jitter is a number of seconds, at least 0, not {entry.jitter_seconds!r}."
    if entry.misfire_limit < 1:
        found["misfire_limit"] = f"At least 1, not {entry.misfire_limit!r}: or choose to skip what was missed."
    if entry.misfire_limit > MOST_MISSED:
        found["misfire_limit"] = f"At most {MOST_MISSED}, not {entry.misfire_limit!r}: they are enqueued all at once."
    if entry.max_running < 0:
        found["max_running"] = f"At least 0, which is no limit, not {entry.max_running!r}."
    if entry.misfire not in Misfire.values:
        found["misfire"] = f"There is no policy {entry.misfire!r}.{conf.suggest(entry.misfire, Misfire.values)}"
    return found


def _option_problems(task: AnyTask, entry: Entry) -> dict[str, str]:
    options = entry.options or {}
    for name in options:
        if name not in OPTIONS:
            return {"options": f"There is no option {name!r}.{conf.suggest(str(name), OPTIONS)}"}
    try:
        _as_asked(task, entry)
    except (InvalidTask, TypeError, ValueError) as error:
        place = "queue" if entry.queue and not options else "options" if options else "task"
        return {place: str(error)}
    return {}


def _as_asked(task: AnyTask, entry: Entry | Schedule) -> AnyTask:
    """The task with the queue and the options of the entry, validated."""
    asked = {**(entry.options or {}), "queue_name": entry.queue or None}
    asked = {name: value for name, value in asked.items() if value is not None}
    made = task.using(**asked) if asked else task
    made.get_backend().validate_task(made)
    return made


# The dispatcher's second --------------------------------------------------------------------------------------------


def enqueue_due() -> int:
    """Enqueue the runs of the ticks that have come; how many. Any number of dispatchers may do so at once.

    What one schedule stumbles over is written into its row, and keeps no other from its turn. Raises what the database
    raised, after the turns of all.
    """
    _discover_once()
    enqueued = 0
    trouble: Exception | None = None
    for row in schedules.due():
        try:
            enqueued += _turn(row)
        except InterfaceError:
            raise
        except (OperationalError, ProgrammingError) as error:
            # The database is away, or lacks a migration: no schedule's fault. Or a receiver's own query is wrong.
            trouble = trouble or error
            runs.database_now()  # raises when it is away: the others need not find out, too
        except Exception as error:
            # A task's module may raise anything.
            reason = str(error) if isinstance(error, InvalidSchedule) else f"{type(error).__name__}: {error}"
            if schedules.fault(row, scrub(reason, LONGEST_REASON)):
                emit("schedule.failed", schedule=row.name, task=row.task, reason=reason)
    if trouble is not None:
        raise trouble
    return enqueued


def _turn(row: Any) -> int:
    rule = schedules.rule_of(row)
    ticks = _ticks(row, rule)
    enqueue = _enqueuer(row)
    taken = schedules.take(row, ticks, timetable.next_tick(rule, row.now), enqueue)
    for due_at in taken or ():
        late = (row.now - due_at).total_seconds()
        emit("schedule.enqueued", schedule=row.name, task=row.task, due=due_at.isoformat(), late=round(late, 3))
    return len(taken or ())


def _ticks(row: Any, rule: timetable.Rule) -> list[Tick]:
    """What becomes of each tick from the first that waits until now."""
    since, now = row.next_at, row.now
    limit = min(max(row.misfire_limit, 1), MOST_MISSED)
    if row.misfire == Misfire.ALL:
        kept = [Tick(due_at) for due_at in timetable.missed(rule, since, now, limit)]
    elif kept := [Tick(due_at) for due_at in timetable.missed(rule, max(since, now - ON_TIME), now, MOST_ON_TIME)]:
        pass
    else:
        kept = [Tick(due_at) for due_at in timetable.missed(rule, since, now, 1)]
        if row.misfire == Misfire.SKIP and kept and now - kept[0].due_at > SKIPPED_AFTER:
            note = f"left out: not enqueued within {SKIPPED_AFTER.total_seconds():g} s"
            kept = [replace(kept[0], note=note, runs=False)]
    if kept and kept[0].due_at > since:
        first = replace(kept[0], note=kept[0].note or f"those from {since:%Y-%m-%d %H:%M:%S} UTC on were missed")
        kept = [first, *kept[1:]]
    return kept


def _enqueuer(row: Any) -> schedules.Enqueue:
    """What writes the run of a tick. Raises InvalidSchedule when the task is not there."""
    task = _task(row.task)
    asked = _as_asked(task, row)
    backend: Any = asked.get_backend()
    if not isinstance(backend, MachineBackend):
        raise InvalidSchedule(f"the backend of {row.task}, {task.backend!r}, does not run tasks on machines")

    def enqueue(due_at: datetime) -> UUID:
        metadata = {"schedule": row.name, "scheduled_at": due_at.isoformat()}
        seconds = timetable.jitter(row.name, due_at, row.jitter_seconds)
        return UUID(backend.enqueue_tick(asked, row.args, row.kwargs, metadata, seconds).id)

    return enqueue


def run_now(row: Schedule) -> UUID | None:
    """Enqueue a run of a schedule beside its timetable; None when it is gone. Raises InvalidSchedule, InvalidTask."""
    _discover_once()
    return schedules.run_now(row.pk, _enqueuer(row), "asked for by hand")


@lru_cache(maxsize=1)
def _discover_once() -> tuple[str, ...]:
    found = discover()
    for problem in found:
        logger.warning("%s; its schedules are left as they are.", problem)
    return tuple(found)


class Keeper:
    """Makes the rows what the code says, gives them back their next tick after a clock was wrong, prunes their ticks.

    Called by the leader each second; it works once a minute. Of two releases only the current one's code counts.
    """

    def __init__(self) -> None:
        self._at: float | None = None

    def __call__(self) -> None:
        if self._at is not None and time.monotonic() - self._at < KEEP_SECONDS:
            return
        synchronise()
        schedules.realign()
        schedules.prune()
        self._at = time.monotonic()


def synchronise() -> None:
    """Make the rows what the code says. Rows of declarations that are gone are disabled, never deleted."""
    broken = _discover_once()
    image, current = conf.settings().image, dispatchers.current_image()
    if image and current and image != current:
        return
    declared = declarations()
    for name, declaration in declared.items():
        try:
            if schedules.declare(name, entry_of(declaration)):
                emit("schedule.declared", schedule=name, task=declaration.task)
        except (InterfaceError, OperationalError, ProgrammingError):
            raise  # the database is away, or lacks a migration: no schedule's fault
        except Exception as error:
            # Whatever is wrong with one keeps no other from its row.
            logger.error("Schedule %r of the code cannot be used: %s: %s", name, type(error).__name__, error)
    if not broken:  # else what is missing may only not have been imported
        for name in schedules.withdraw(declared):
            emit("schedule.withdrawn", schedule=name)
