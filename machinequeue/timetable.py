"""When schedules are due: cron and intervals in their time zone, the next and the missed ticks. Pure.

Times are aware datetimes; `now`, `after` and the like are arguments. `cronsim` reads the expressions and counts through
a calendar without zones; what daylight saving time makes of it is said here:

- A cron with a fixed minute and hour ("30 2 * * *") is a time on the wall. In the night in which the clock skips it,
  the tick comes at the moment of the change; where the clock shows it twice, it comes the first time only.
- A cron whose minute or hour begins with a star ("*/15 * * * *") is a rhythm. It ticks whenever the clock on the wall
  shows a time that fits: not in the hour that is skipped, twice in the hour that comes twice.
- An interval is elapsed time and knows no clock on the wall.
"""

import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from machinequeue.errors import InvalidSchedule

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
FIELDS = {
    "second": "0 to 59",
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31, or L for the last",
    "month": "1 to 12, or JAN to DEC",
    "day-of-week": "0 to 7, where 0 and 7 are Sunday, or SUN to SAT",
}
"""The fields of an expression of six, in cronsim's words, and what they take beside stars, lists, ranges and steps."""
NEVER = "no day of the calendar fits it"
SHORTEST_INTERVAL = timedelta(seconds=1)
LONGEST_INTERVAL = timedelta(days=36_525)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_INSTANT = timedelta(microseconds=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Crontab:
    """A cron expression of five or six fields (the first of six is the second), and its zone.

    An empty time zone is the project's TIME_ZONE.
    """

    expression: str
    timezone: str = ""

    def __str__(self) -> str:
        return f"{self.expression} {self.timezone}".strip()


When = Crontab | timedelta | datetime
"""A cron, an interval, or one single moment."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When a schedule is due: not before `start`, not after `end`. An interval counts from `start`, else from 1970."""

    when: When
    start: datetime | None = None
    end: datetime | None = None


def crontab(  # noqa: PLR0913 - all but one are named
    expression: str | None = None,
    *,
    timezone: str = "",
    second: str | int | None = None,
    minute: str | int = "*",
    hour: str | int = "*",
    day: str | int = "*",
    month: str | int = "*",
    day_of_week: str | int = "*",
    day_of_month: str | int | None = None,
    month_of_year: str | int | None = None,
) -> Crontab:
    """A cron from an expression, or from fields by their names in huey and Celery.

    `crontab("0 3 * * *", timezone="Europe/Berlin")`, `crontab(minute="0", hour="3")`, `crontab("@daily")`. Fields that
    are left out are "*". Without a time zone it is the project's TIME_ZONE. Raises InvalidSchedule.
    """
    named = [minute, hour, day if day_of_month is None else day_of_month]
    named += [month if month_of_year is None else month_of_year, day_of_week]
    fields = [str(field) for field in (named if second is None else [second, *named])]
    if expression is None:
        expression = " ".join(fields)
    elif fields != ["*"] * 5:
        raise InvalidSchedule("crontab() takes an expression or fields by name, not both.")
    made = Crontab(normal(expression), timezone)
    if timezone:
        zone(timezone)
    return made


def normal(expression: Any) -> str:
    """The expression in plain fields, checked. Raises InvalidSchedule with what is wrong and how to mend it."""
    if not isinstance(expression, str):
        raise InvalidSchedule(f"A cron expression is text such as '0 3 * * *', not {expression!r:.80}.")
    text = " ".join(expression.split())
    if text.startswith("@"):
        if text.lower() not in ALIASES:
            raise InvalidSchedule(f"{text!r} is no cron expression.{_suggest(text, ALIASES)}")
        text = ALIASES[text.lower()]
    if problem := _problem(text):
        raise InvalidSchedule(f"{expression!r:.80} is no cron expression: {problem}.")
    return text


@lru_cache(maxsize=256)
def _problem(expression: str) -> str:
    count = len(expression.split())
    if count not in (5, 6):
        hint = "write minute, hour, day, month and day of week, or six with the second first"
        return f"it has {count} field{'s' * (count != 1)}; {hint}"
    try:
        next(CronSim(expression, datetime(2024, 1, 1)))  # noqa: DTZ001 - the calendar has no zone
    except CronSimError as error:
        return _bad_field(expression, str(error).removeprefix("Bad "))
    except StopIteration:
        return NEVER
    return ""


def _bad_field(expression: str, name: str) -> str:
    """What the field of this name should have been; by itself it may be right, as the 30th is but for February."""
    given = expression.split()
    names = list(FIELDS)[-len(given) :]
    alone = ["*" if each != name else field for each, field in zip(names, given, strict=True)]
    try:
        CronSim(" ".join(alone), datetime(2024, 1, 1))  # noqa: DTZ001 - the calendar has no zone
    except CronSimError:
        value = given[names.index(name)]
        return f"{value!r:.40} is no {name.replace('-', ' ')}, which is {FIELDS[name]}"
    return NEVER


@lru_cache(maxsize=64)
def zone(name: str) -> ZoneInfo:
    """The time zone of this name. Raises InvalidSchedule."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        hint = _suggest(str(name), available_timezones())
        raise InvalidSchedule(f"{name!r} is no time zone.{hint or ' A name looks like Europe/Berlin.'}") from None


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def checked(when: Any) -> When:
    """What a declaration gives as its time, if it is one. Raises InvalidSchedule with the remedy."""
    if isinstance(when, Crontab):
        return when
    if isinstance(when, timedelta):
        if when < SHORTEST_INTERVAL:
            raise InvalidSchedule(f"An interval is at least one second, not {when.total_seconds():g} s.")
        if when > LONGEST_INTERVAL:
            raise InvalidSchedule(f"An interval is at most 100 years, not {when.total_seconds():g} s.")
        return when
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise InvalidSchedule(f"{when} has no time zone: give it one, e.g. tzinfo=datetime.UTC.")
        return when
    if callable(when) and getattr(when, "__module__", "") == "huey.api":
        raise InvalidSchedule(
            "This crontab was made by huey, which keeps neither its fields nor a time zone: "
            "use `from machinequeue import crontab`, which takes the same fields."
        )
    if isinstance(when, str):
        raise InvalidSchedule(f"A schedule is crontab({when!r:.80}) or a timedelta, not text.")
    raise InvalidSchedule(f"A schedule is crontab(...) or a timedelta, not {when!r:.80}.")


def interval(seconds: float) -> timedelta:
    """An interval of so many seconds. Raises InvalidSchedule for one that is none."""
    try:
        made = timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        made = timedelta.max
    checked(made)
    return made


# Ticks --------------------------------------------------------------------------------------------------------------


def ticks(rule: Rule, after: datetime) -> Iterator[datetime]:
    """The due instants later than `after`, oldest first, in UTC. May be endless."""
    after = after.astimezone(UTC)
    if rule.start is not None:
        after = max(after, rule.start.astimezone(UTC) - _INSTANT)
    for tick in _unbounded(rule, after):
        if rule.end is not None and tick > rule.end:
            return
        yield tick


def _unbounded(rule: Rule, after: datetime) -> Iterator[datetime]:
    match rule.when:
        case datetime() as moment:
            return iter([moment.astimezone(UTC)] if moment > after else [])
        case timedelta() as every:
            return _interval(every, rule.start or EPOCH, after)
        case Crontab(expression, timezone):
            # Times with a fraction of a second are between two that a cron can name.
            count = _wall if _is_wall_time(expression) else _rhythm
            return count(expression, zone(timezone or "UTC"), after.replace(microsecond=0))


def next_tick(rule: Rule, after: datetime) -> datetime | None:
    """The first due instant later than `after`; None when there is none."""
    return next(ticks(rule, after), None)


def upcoming(rule: Rule, after: datetime, count: int) -> list[datetime]:
    """The next `count` due instants, or fewer."""
    return [tick for tick, _ in zip(ticks(rule, after), range(count), strict=False)]


def missed(rule: Rule, since: datetime, until: datetime, most: int) -> list[datetime]:
    """The newest `most` due instants from `since` to `until`, both included, oldest first.

    At a cost that grows with `most`, not with the time between: an outage may have been long.
    """
    until = until if rule.end is None else min(until, rule.end)
    span = timedelta(minutes=1)
    while True:
        begin = max(since, until - span)
        found = []
        for tick in ticks(rule, begin - _INSTANT):
            if tick > until:
                break
            found.append(tick)
        if len(found) >= most or begin <= since:
            return found[-most:]
        span *= 4


def jitter(name: str, tick: datetime, most: float) -> float:
    """Seconds, from 0 to `most`, by which the run of a tick is put off: always the same for the same tick."""
    digest = hashlib.sha256(f"{name} {tick.timestamp()}".encode()).digest()
    return most * int.from_bytes(digest[:8], "big") / 2**64


def _interval(every: timedelta, begin: datetime, after: datetime) -> Iterator[datetime]:
    number = (after - begin) // every + 1
    while True:
        if number >= 0 or begin == EPOCH:
            yield (begin + number * every).astimezone(UTC)
        number += 1


def _is_wall_time(expression: str) -> bool:
    minute, hour = expression.split()[-5:-3]
    return not (minute.startswith("*") or hour.startswith("*"))


def _wall(expression: str, place: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """A time on the wall: once a day that fits, whatever the clock does."""
    for shown in CronSim(expression, after.astimezone(place).replace(tzinfo=None, fold=0)):
        tick = _instant(shown, place)
        if tick > after:  # else it was the first of two, or several were skipped together
            yield tick
            after = tick


def _instant(shown: datetime, place: ZoneInfo) -> datetime:
    """When the clock on the wall shows this for the first time; when it skips this, the moment at which it does."""
    before, since = (_offset(shown.replace(tzinfo=place, fold=fold)) for fold in (0, 1))
    tick = shown.replace(tzinfo=UTC) - before
    if since <= before:
        return tick
    return _change(place, tick + before - since, tick) or tick


def _rhythm(expression: str, place: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Every moment at which the clock on the wall shows a time that fits. Between two changes it runs evenly."""
    begin = after
    while True:
        offset = _offset(after.astimezone(place))
        shown = next(CronSim(expression, (begin + offset).replace(tzinfo=None)), None)
        if shown is None:
            return
        tick = shown.replace(tzinfo=UTC) - offset
        if (change := _change(place, after, tick)) is None:
            yield tick
            begin = after = tick
        else:
            begin, after = change - _SECOND, change


def _change(place: ZoneInfo, after: datetime, until: datetime) -> datetime | None:
    """The first moment in UTC, later than `after` and not later than `until`, at which the zone changes its offset."""
    offset, low = _offset(after.astimezone(place)), after
    while low < until:
        high = min(low + _DAY, until)
        if _offset(high.astimezone(place)) != offset:
            while high - low > _SECOND:
                middle = low + (high - low) // 2 // _SECOND * _SECOND
                same = _offset(middle.astimezone(place)) == offset
                low, high = (middle, high) if same else (low, middle)
            return high
        low = high
    return None


def _offset(moment: datetime) -> timedelta:
    offset = moment.utcoffset()
    assert offset is not None
    return offset
