"""When schedules are due: the nights in which clocks change, and an independent reading of cron expressions."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from huey import crontab as huey_crontab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machinequeue import Crontab, InvalidSchedule, crontab, timetable
from machinequeue.timetable import Rule, checked, jitter, missed, next_tick, ticks, upcoming

HOUR = timedelta(hours=1)


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def cron(expression: str, zone: str = "UTC") -> Rule:
    return Rule(when=crontab(expression, timezone=zone))


def between(rule: Rule, begin: datetime, end: datetime) -> list[datetime]:
    found = []
    for tick in ticks(rule, begin - timedelta(microseconds=1)):
        if tick > end:
            break
        found.append(tick)
    return found


# The nights in which clocks change ----------------------------------------------------------------------------------

# zone, the last whole UTC hour before the change, what the clock shows then, and what a second later
SPRING = [
    ("Europe/Berlin", "2026-03-29T01:00", "02:30", 60),
    ("America/New_York", "2026-03-08T07:00", "02:30", 60),
    ("Australia/Sydney", "2026-10-03T16:00", "02:30", 60),
    ("America/Santiago", "2026-09-06T04:00", "00:30", 60),  # at midnight: the day begins at one
    ("Australia/Lord_Howe", "2026-10-03T15:30", "02:15", 30),  # half an hour only
]
AUTUMN = [
    ("Europe/Berlin", "2026-10-25T01:00", "02:30", 60),
    ("America/New_York", "2026-11-01T06:00", "01:30", 60),
    ("Australia/Sydney", "2026-04-04T16:00", "02:30", 60),
    ("America/Santiago", "2026-04-05T03:00", "23:30", 60),  # the day before ends twice
    ("Australia/Lord_Howe", "2026-04-04T15:00", "01:45", 30),
]


def fixed(shown: str) -> str:
    hour, minute = shown.split(":")
    return f"{int(minute)} {int(hour)} * * *"


@pytest.mark.parametrize("seconds", ["", "0 "])
@pytest.mark.parametrize(("zone", "change", "shown", "minutes"), SPRING)
def test_a_time_that_the_clock_skips_comes_when_it_does(
    zone: str, change: str, shown: str, minutes: int, seconds: str
) -> None:
    moment = at(change)
    before, after = (moment - HOUR).astimezone(ZoneInfo(zone)), moment.astimezone(ZoneInfo(zone))
    assert after.utcoffset() - before.utcoffset() == timedelta(minutes=minutes)  # type: ignore[operator]
    rule = cron(seconds + fixed(shown), zone)
    days = between(rule, moment - 40 * HOUR, moment + 40 * HOUR)
    assert moment in days
    assert len(days) == 3
    shows = [day.astimezone(ZoneInfo(zone)).strftime("%H:%M") for day in days]
    assert shows == [shown, after.strftime("%H:%M"), shown]


@pytest.mark.parametrize("seconds", ["", "0 "])
@pytest.mark.parametrize(("zone", "change", "shown", "minutes"), AUTUMN)
def test_a_time_that_the_clock_shows_twice_comes_the_first_time(
    zone: str, change: str, shown: str, minutes: int, seconds: str
) -> None:
    moment = at(change)
    place = ZoneInfo(zone)
    rule = cron(seconds + fixed(shown), zone)
    [first] = between(rule, moment - 12 * HOUR, moment + 12 * HOUR)
    assert first == moment - timedelta(minutes=minutes // 2)
    assert first.astimezone(place).strftime("%H:%M") == shown
    again = first + timedelta(minutes=minutes)
    assert again.astimezone(place).strftime("%H:%M") == shown  # the clock shows it, and nothing comes
    for later in (again - timedelta(minutes=1), again, again + timedelta(minutes=1)):
        assert next_tick(rule, later) > again + 20 * HOUR  # type: ignore[operator]  # whenever it is asked


@pytest.mark.parametrize(("zone", "change", "shown", "minutes"), SPRING + AUTUMN)
def test_a_rhythm_goes_on_through_the_change(zone: str, change: str, shown: str, minutes: int) -> None:
    moment = at(change)
    found = between(cron("*/15 * * * *", zone), moment - 3 * HOUR, moment + 3 * HOUR)
    assert found == [moment - 3 * HOUR + number * timedelta(minutes=15) for number in range(25)]


def test_what_is_said_of_half_past_two_in_berlin() -> None:
    spring = between(cron("30 2 * * *", "Europe/Berlin"), at("2026-03-28T12:00"), at("2026-03-30T12:00"))
    assert spring == [at("2026-03-29T01:00"), at("2026-03-30T00:30")]  # 03:00 and 02:30 on the wall
    autumn = between(cron("30 2 * * *", "Europe/Berlin"), at("2026-10-24T12:00"), at("2026-10-26T12:00"))
    assert autumn == [at("2026-10-25T00:30"), at("2026-10-26T01:30")]
    hourly = between(cron("30 * * * *", "Europe/Berlin"), at("2026-10-24T23:45"), at("2026-10-25T02:00"))
    assert hourly == [at("2026-10-25T00:30"), at("2026-10-25T01:30")]  # 02:30 twice: a rhythm


def test_several_times_that_are_skipped_together_are_one_tick() -> None:
    found = between(cron("0,15,30 2,3 * * *", "Europe/Berlin"), at("2026-03-29T00:00"), at("2026-03-29T02:00"))
    assert found == [at("2026-03-29T01:00"), at("2026-03-29T01:15"), at("2026-03-29T01:30")]


def test_an_interval_knows_no_clock_on_the_wall() -> None:
    found = upcoming(Rule(when=timedelta(hours=6)), at("2026-03-28T23:59"), 3)
    assert found == [at("2026-03-29T00:00"), at("2026-03-29T06:00"), at("2026-03-29T12:00")]


def test_two_zones_have_the_same_time_at_different_moments() -> None:
    moment = at("2026-01-10T00:00")
    assert next_tick(cron("0 9 * * *", "Asia/Tokyo"), moment) == at("2026-01-11T00:00")
    assert next_tick(cron("0 9 * * *", "America/New_York"), moment) == at("2026-01-10T14:00")


# Independent readings -----------------------------------------------------------------------------------------------


def _field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    # A range of one number is a whole turn to croniter, as only it reads it.
    ranges = st.tuples(number, number).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: f"{pair[0]}-{pair[1]}")
    lists = st.lists(number, min_size=2, max_size=4, unique=True).map(lambda some: ",".join(map(str, sorted(some))))
    return st.one_of(st.just("*"), number.map(str), st.sampled_from(["*/2", "*/5", "*/7"]), ranges, lists)


MOMENTS = st.integers(0, 25 * 366 * 86_400).map(lambda seconds: at("2005-01-01T00:00") + timedelta(seconds=seconds))
ZONES = st.sampled_from(sorted({zone for zone, *_ in SPRING} | {"UTC", "Africa/Casablanca", "Asia/Kolkata"}))


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    minute=_field(0, 59),
    hour=_field(0, 23),
    month=st.one_of(st.just("*"), _field(1, 12)),
    days=st.one_of(st.just(("*", "*")), st.tuples(_field(1, 28), st.just("*")), st.tuples(st.just("*"), _field(0, 6))),
    moment=MOMENTS,
)
def test_ten_thousand_ticks_are_those_of_another_library(
    minute: str, hour: str, month: str, days: tuple[str, str], moment: datetime
) -> None:
    """Twenty ticks of each of 500 expressions, against croniter's reading of them."""
    expression = f"{minute} {hour} {days[0]} {month} {days[1]}"
    other = croniter(expression, moment)
    expected = [other.get_next(datetime) for _ in range(20)]
    assert upcoming(cron(expression), moment, 20) == expected


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    minute=st.sampled_from(["*", "*/5", "*/20"]),
    hour=st.sampled_from(["*", "*/2", "1-3", "0,2"]),
    zone=ZONES,
    change=st.sampled_from([change for _, change, *_ in SPRING + AUTUMN]),
)
def test_a_rhythm_ticks_whenever_the_clock_on_the_wall_fits(minute: str, hour: str, zone: str, change: str) -> None:
    """Each minute of the hours around a change, asked one by one."""
    expression = f"{minute} {hour} * * *"
    begin = at(change) - 6 * HOUR
    minutes = [begin + timedelta(minutes=number) for number in range(12 * 60)]
    fields = croniter.expand(expression)[0]
    good = [set(range(60)) if field == ["*"] else set(field) for field in fields[:2]]
    shown = [(one, one.astimezone(ZoneInfo(zone))) for one in minutes]
    expected = [one for one, wall in shown if wall.minute in good[0] and wall.hour in good[1]]
    assert between(cron(expression, zone), begin, minutes[-1]) == expected


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(minute=_field(0, 59), hour=_field(0, 23), zone=ZONES, moment=MOMENTS)
def test_it_does_not_matter_from_when_one_counts(minute: str, hour: str, zone: str, moment: datetime) -> None:
    """Two dispatchers that ask at different moments find the same ticks: each is strictly later than what was asked."""
    rule = cron(f"{minute} {hour} * * *", zone)
    found = upcoming(rule, moment, 12)
    assert all(earlier < later for earlier, later in zip([moment, *found], found, strict=False))
    for earlier, later in pairwise(found):
        assert next_tick(rule, earlier) == later
        assert next_tick(rule, earlier + (later - earlier) / 2) == later
        assert next_tick(rule, later - timedelta(microseconds=1)) == later


# Start, end, once, missed -------------------------------------------------------------------------------------------


def test_start_and_end_are_included() -> None:
    daily = crontab("0 3 * * *", timezone="UTC")
    rule = Rule(when=daily, start=at("2026-01-02T03:00"), end=at("2026-01-04T03:00"))
    assert [tick.day for tick in upcoming(rule, at("2025-01-01T00:00"), 10)] == [2, 3, 4]
    assert next_tick(rule, at("2026-01-04T03:00")) is None


def test_an_interval_counts_from_its_start() -> None:
    rule = Rule(when=timedelta(minutes=7), start=at("2026-01-01T00:01"))
    assert upcoming(rule, at("2025-01-01T00:00"), 2) == [at("2026-01-01T00:01"), at("2026-01-01T00:08")]
    assert next_tick(rule, at("2026-01-01T00:08")) == at("2026-01-01T00:15")


def test_a_single_moment_comes_once() -> None:
    rule = Rule(when=at("2026-05-01T08:00", "Europe/Berlin"))
    assert upcoming(rule, at("2026-01-01T00:00"), 3) == [at("2026-05-01T06:00")]
    assert next_tick(rule, at("2026-05-01T06:00")) is None


@pytest.mark.parametrize("rule", [cron("* * * * * *"), Rule(when=timedelta(seconds=1))])
def test_the_newest_of_very_many_missed_ticks_are_found_at_once(rule: Rule) -> None:
    """A year of seconds: were they counted one by one, this would not end while somebody waits."""
    now = at("2026-01-01T00:00")
    found = missed(rule, now - timedelta(days=365), now, 3)
    assert found == [now - timedelta(seconds=2), now - timedelta(seconds=1), now]


def test_no_tick_is_looked_for_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end lies weeks back: were the time since then searched, all the ticks before it would be listed, too."""
    now, end = at("2026-01-01T00:00"), at("2025-12-01T00:00")
    counted = []

    def counting(*args: Any) -> Iterator[datetime]:
        for tick in ticks(*args):
            counted.append(tick)
            yield tick

    monkeypatch.setattr(timetable, "ticks", counting)
    found = missed(Rule(when=timedelta(seconds=1), end=end), end - timedelta(days=30), now, 3)
    assert found == [end - timedelta(seconds=2), end - timedelta(seconds=1), end]
    assert len(counted) < 1000


def test_missed_ticks_include_the_first_and_the_last() -> None:
    found = missed(cron("0 * * * *"), at("2026-01-01T00:00"), at("2026-01-01T03:00"), 100)
    assert [tick.hour for tick in found] == [0, 1, 2, 3]
    assert missed(cron("0 * * * *"), at("2026-01-01T00:01"), at("2026-01-01T00:59"), 5) == []


def test_jitter_is_the_same_for_the_same_tick() -> None:
    moment = at("2026-01-01T00:00")
    found = [jitter("nightly", moment + number * HOUR, 30) for number in range(50)]
    assert found == [jitter("nightly", moment + number * HOUR, 30) for number in range(50)]
    assert all(0 <= seconds < 30 for seconds in found)
    assert len(set(found)) == 50
    assert jitter("nightly", moment, 0) == 0


# What is declared ---------------------------------------------------------------------------------------------------


def test_fields_may_have_the_names_of_huey_and_celery() -> None:
    assert crontab(minute="0", hour="3") == crontab("0 3 * * *") == Crontab("0 3 * * *")
    assert crontab(minute=5, day_of_month=1, month_of_year="*/2") == crontab("5 * 1 */2 *")
    assert crontab(second="*/10").expression == "*/10 * * * * *"
    assert crontab("@daily", timezone="Asia/Tokyo") == Crontab("0 0 * * *", "Asia/Tokyo")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: crontab("0 3 * *"), "it has 4 fields; write minute, hour, day, month and day of week"),
        (lambda: crontab("61 3 * * *"), "'61 3 * * *' is no cron expression: '61' is no minute, which is 0 to 59"),
        (lambda: crontab("0 61 3 * * *"), "'61' is no minute, which is 0 to 59"),
        (lambda: crontab("0 0 30 2 *"), "no day of the calendar fits it"),
        (lambda: crontab("0 0 31 4 MON-"), "'MON-' is no day of week, which is 0 to 7, where"),
        (lambda: crontab("@dayly"), "Did you mean '@daily'?"),
        (lambda: crontab("@reboot"), "'@reboot' is no cron expression"),
        (lambda: crontab("0 3 * * *", hour=4), "takes an expression or fields by name, not both"),
        (lambda: crontab("0 3 * * *", timezone="Europe/Berlni"), "Did you mean 'Europe/Berlin'?"),
        (lambda: crontab("0 3 * * *", timezone="../etc/passwd"), "is no time zone"),
        (lambda: crontab(5), "A cron expression is text"),
        (lambda: checked("0 3 * * *"), "A schedule is crontab('0 3 * * *')"),
        (lambda: checked(timedelta(0)), "at least one second, not 0 s"),
        (lambda: checked(datetime(2026, 1, 1)), "has no time zone"),  # noqa: DTZ001
        (lambda: checked(huey_crontab(hour="3")), "made by huey"),
        (lambda: checked(3), "A schedule is crontab(...) or a timedelta, not 3"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(make: Any, said: str) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        make()
    assert said in str(caught.value)


def test_ticks_are_in_utc() -> None:
    for rule in (cron("0 3 * * *", "Asia/Tokyo"), cron("* * * * *", "Asia/Tokyo"), Rule(when=HOUR)):
        tick = next_tick(rule, at("2026-01-01T00:00", "America/New_York"))
        assert tick is not None
        assert tick.tzinfo is UTC
