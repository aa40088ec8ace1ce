"""Schedules: what the code declares and operators change, and what becomes of each tick."""

import logging
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import ProgrammingError

from machinequeue import InvalidSchedule, crontab, machine_task, schedule, schedules
from machinequeue.checks import check_schedules
from machinequeue.compat import default_task_backend
from machinequeue.models import Dispatcher, Release, Schedule, ScheduleTick, TaskRun
from machinequeue.records import runs
from machinequeue.records import schedules as rows
from machinequeue.records.schedules import Entry
from machinequeue.testing import run_tasks
from tests.workshop import tasks

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)
ADD = "tests.workshop.tasks.add"
Woken = list[tuple[str, str]]


@machine_task(takes_context=True)
def when(context: Any) -> Any:
    return context.scheduled_at.isoformat() if context.scheduled_at else None


@pytest.fixture(autouse=True)
def declared(woken: Woken, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The schedules of the code: none but those of the test."""
    known: dict[str, Any] = {}
    monkeypatch.setattr(schedules, "_declared", known)
    monkeypatch.setattr(schedules, "registered", lambda: {ADD: tasks.add})
    return known


def now() -> datetime:
    return runs.database_now()


def minutely(**values: Any) -> Schedule:
    """A schedule due each minute, of `add(1)`."""
    row = rows.create("minutely", Entry(**{"task": ADD, "args": [1], "every_seconds": 60.0, **values}))
    assert row is not None
    return row


def due_since(row: Schedule, ago: timedelta) -> datetime:
    """As if no dispatcher had been there for so long, and a second: the first tick that waits. The next but those that
    are due comes almost an interval from now, so that no test sees it."""
    first = (now() - ago - timedelta(seconds=1)).replace(microsecond=0)
    Schedule.objects.filter(pk=row.pk).update(next_at=first, start_at=first)
    return first


def enqueued() -> list[str]:
    """The scheduled times of all runs, oldest first."""
    return sorted(run.metadata["scheduled_at"] for run in TaskRun.objects.all())


# A tick -------------------------------------------------------------------------------------------------------------


def test_a_due_tick_becomes_a_run_with_its_time(woken: Woken, django_capture_on_commit_callbacks: Any) -> None:
    row = minutely(kwargs={"b": 2})
    first = due_since(row, timedelta(seconds=0))
    with django_capture_on_commit_callbacks(execute=True):
        assert schedules.enqueue_due() == 1
        assert schedules.enqueue_due() == 0
    [run] = TaskRun.objects.all()
    assert (run.task, run.args, run.kwargs, run.queue) == (ADD, [1], {"b": 2}, "default")
    assert run.metadata == {"schedule": "minutely", "scheduled_at": first.isoformat()}
    [tick] = ScheduleTick.objects.all()
    assert (tick.due_at, tick.run_id, tick.note) == (first, run.pk, "")
    row.refresh_from_db()
    assert row.next_at == first + MINUTE
    assert row.last_due_at == first
    assert row.last_lateness is not None
    assert row.last_lateness >= 0
    assert woken == [("default", "default")]


def test_the_task_is_told_its_scheduled_time() -> None:
    rows.create("when", Entry(task=when.module_path, every_seconds=60.0))
    first = due_since(Schedule.objects.get(), timedelta(0))
    schedules.enqueue_due()
    plain = when.enqueue()
    assert run_tasks() == 2
    plain.refresh()
    assert plain.return_value is None
    [scheduled] = TaskRun.objects.exclude(pk=plain.id)
    assert scheduled.return_value == first.isoformat()
    assert default_task_backend.get_result(str(scheduled.pk)).metadata["schedule"] == "when"


def test_the_run_asks_for_what_the_schedule_says() -> None:
    row = minutely(queue="reports", options={"memory_mb": 2048, "timeout": 30.0, "priority": 7})
    due_since(row, timedelta(0))
    schedules.enqueue_due()
    [run] = TaskRun.objects.all()
    assert (run.queue, run.spec["memory_mb"], run.timeout, run.priority) == ("reports", 2048, 30.0, 7)


def test_jitter_puts_the_run_off_and_not_its_scheduled_time() -> None:
    row = minutely(jitter_seconds=1000.0)
    first = due_since(row, timedelta(0))
    before = now()
    schedules.enqueue_due()
    [run] = TaskRun.objects.all()
    assert before < run.run_after <= now() + timedelta(seconds=1000)
    assert run.metadata["scheduled_at"] == first.isoformat()


def test_two_zones_are_due_at_their_own_time() -> None:
    for zone in ("Asia/Tokyo", "America/New_York"):
        assert rows.create(zone, Entry(task=ADD, args=[1], cron="0 9 * * *", timezone=zone))
    shown = {row.name: row.next_at.astimezone(ZoneInfo(row.timezone)) for row in Schedule.objects.all()}  # type: ignore[union-attr]
    assert {(each.hour, each.minute) for each in shown.values()} == {(9, 0)}
    assert shown["Asia/Tokyo"] != shown["America/New_York"]


# Once, whoever asks -------------------------------------------------------------------------------------------------


def test_a_turn_that_another_took_first_enqueues_nothing() -> None:
    row = minutely()
    due_since(row, timedelta(0))
    [mine] = rows.due()
    assert schedules.enqueue_due() == 1  # another dispatcher, between the question and the answer
    assert schedules._turn(mine) == 0
    assert TaskRun.objects.count() == 1


def test_a_tick_that_was_won_is_never_won_again_even_when_a_clock_went_back() -> None:
    row = minutely()
    first = due_since(row, timedelta(0))
    assert schedules.enqueue_due() == 1
    Schedule.objects.filter(pk=row.pk).update(next_at=first)
    assert schedules.enqueue_due() == 0
    assert TaskRun.objects.count() == 1
    row.refresh_from_db()
    assert row.next_at == first + MINUTE  # and it does not stay there


def test_a_clock_that_was_ahead_for_a_moment_does_not_stop_a_schedule() -> None:
    row = minutely()
    Schedule.objects.filter(pk=row.pk).update(next_at=now() + timedelta(days=3650))
    rows.realign()
    row.refresh_from_db()
    assert row.next_at is not None
    assert row.next_at <= now() + MINUTE


def test_a_due_tick_is_left_alone_by_whoever_looks_after_the_rows() -> None:
    row = minutely()
    first = due_since(row, 5 * MINUTE)
    rows.realign()
    row.refresh_from_db()
    assert row.next_at == first


def test_a_failed_enqueue_leaves_neither_tick_nor_run(monkeypatch: pytest.MonkeyPatch) -> None:
    row = minutely()
    first = due_since(row, timedelta(0))

    def fail(*args: Any) -> Any:
        raise RuntimeError("no paper left")

    with monkeypatch.context() as patched:
        patched.setattr(runs, "create", fail)
        assert schedules.enqueue_due() == 0
    row.refresh_from_db()
    assert (row.next_at, row.last_error) == (first, "RuntimeError: no paper left")
    assert not ScheduleTick.objects.exists()
    assert schedules.enqueue_due() == 1
    row.refresh_from_db()
    assert (row.last_error, row.failed_at) == ("", None)


def test_a_database_error_of_one_schedule_keeps_no_other_from_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver's query is wrong, say: it is told, after the others had their turn."""
    wrong = rows.create("wrong", Entry(task=ADD, args=[2], every_seconds=60.0))
    assert wrong is not None
    due_since(wrong, MINUTE)  # the first in turn
    due_since(minutely(), timedelta(0))
    create = runs.create

    def receiver(*args: Any, **kwargs: Any) -> Any:
        made = create(*args, **kwargs)
        if TaskRun.objects.filter(args=[2]).exists():
            raise ProgrammingError("relation shop_log does not exist")
        return made

    with monkeypatch.context() as patched:
        patched.setattr(runs, "create", receiver)
        with pytest.raises(ProgrammingError, match="shop_log"):
            schedules.enqueue_due()
    assert [run.args for run in TaskRun.objects.all()] == [[1]]


# After an outage ----------------------------------------------------------------------------------------------------


def test_latest_runs_once_after_a_long_outage_and_says_so() -> None:
    row = minutely(every_seconds=3600.0)
    first = due_since(row, timedelta(days=30))
    assert schedules.enqueue_due() == 1
    [scheduled] = enqueued()
    assert now() - datetime.fromisoformat(scheduled) < timedelta(hours=1)
    row.refresh_from_db()
    assert row.next_at == datetime.fromisoformat(scheduled) + timedelta(hours=1)
    assert ScheduleTick.objects.get().note == f"those from {first:%Y-%m-%d %H:%M:%S} UTC on were missed"


def test_all_makes_up_for_what_was_missed_up_to_its_limit() -> None:
    row = minutely(misfire="all", misfire_limit=5)
    due_since(row, timedelta(days=30))
    assert schedules.enqueue_due() == 5
    times = [datetime.fromisoformat(text) for text in enqueued()]
    assert [later - earlier for earlier, later in pairwise(times)] == [MINUTE] * 4
    assert now() - times[-1] < 2 * MINUTE
    assert schedules.enqueue_due() == 0


def test_skip_leaves_out_what_is_too_late() -> None:
    row = minutely(every_seconds=86_400.0 * 7, misfire="skip", start_at=now() - timedelta(days=8))
    due = now() - timedelta(days=1)
    Schedule.objects.filter(pk=row.pk).update(next_at=due, start_at=due)
    assert schedules.enqueue_due() == 0
    assert not TaskRun.objects.exists()
    tick = ScheduleTick.objects.get()
    assert (tick.due_at, tick.run_id, tick.note) == (due, None, "left out: not enqueued within 60 s")
    row.refresh_from_db()
    assert row.next_at == due + timedelta(days=7)


def test_skip_runs_what_is_less_than_a_minute_late() -> None:
    row = minutely(misfire="skip")
    first = due_since(row, timedelta(hours=1, seconds=30))
    assert schedules.enqueue_due() == 1
    assert enqueued() == [(first + timedelta(hours=1)).isoformat()]


@pytest.mark.parametrize("misfire", ["latest", "skip", "all"])
def test_ticks_of_the_last_seconds_were_not_missed(misfire: str) -> None:
    row = minutely(every_seconds=1.0, misfire=misfire)
    first = due_since(row, timedelta(seconds=5))
    assert schedules.enqueue_due() >= 5
    times = [datetime.fromisoformat(text) for text in enqueued()]
    assert times == [first + timedelta(seconds=number) for number in range(len(times))]


# Bounds -------------------------------------------------------------------------------------------------------------


def test_a_tick_is_left_out_while_too_many_runs_have_not_finished() -> None:
    row = minutely(max_running=1)
    due_since(row, timedelta(0))
    assert schedules.enqueue_due() == 1
    due = now() - timedelta(seconds=1)
    Schedule.objects.filter(pk=row.pk).update(next_at=due, every_seconds=86_400.0, start_at=due)
    assert schedules.enqueue_due() == 0
    left_out = ScheduleTick.objects.get(due_at=due)
    assert (left_out.run_id, left_out.note) == (None, "left out: 1 of 1 runs had not finished")
    run_tasks()
    due += timedelta(milliseconds=500)
    Schedule.objects.filter(pk=row.pk).update(next_at=due, start_at=due)
    assert schedules.enqueue_due() == 1


def test_a_single_moment_is_enqueued_once_and_never_again() -> None:
    due = now() + timedelta(hours=1)
    row = minutely(every_seconds=None, at=due)
    assert row.next_at == due
    past = now() - timedelta(seconds=2)
    Schedule.objects.filter(pk=row.pk).update(at=past, next_at=past)
    assert schedules.enqueue_due() == 1
    row.refresh_from_db()
    assert row.next_at is None
    rows.realign()
    assert schedules.enqueue_due() == 0


def test_nothing_is_due_before_the_start_nor_after_the_end() -> None:
    start = now() + timedelta(days=1)
    row = minutely(start_at=start, end_at=start + timedelta(seconds=30))
    assert row.next_at == start
    past = now() - timedelta(seconds=3)
    Schedule.objects.filter(pk=row.pk).update(start_at=past, end_at=past + timedelta(seconds=1), next_at=past)
    assert schedules.enqueue_due() == 1
    row.refresh_from_db()
    assert row.next_at is None


def test_what_is_paused_or_disabled_is_not_due_and_goes_on_from_then() -> None:
    row = minutely()
    due_since(row, 5 * MINUTE)
    assert rows.set_paused(row.pk, paused=True)
    assert not rows.set_paused(row.pk, paused=True)
    assert schedules.enqueue_due() == 0
    assert rows.set_paused(row.pk, paused=False)
    assert schedules.enqueue_due() == 0  # what fell into the pause is left out
    row.refresh_from_db()
    assert row.next_at is not None
    assert row.next_at > now() - timedelta(seconds=1)
    Schedule.objects.filter(pk=row.pk).update(enabled=False)
    due_since(row, 5 * MINUTE)
    assert schedules.enqueue_due() == 0


def test_a_changed_cron_counts_from_the_change_also_while_a_tick_is_due() -> None:
    row = minutely(every_seconds=None, cron="* * * * *")
    due_since(row, 5 * MINUTE)
    [stale] = rows.due()
    assert rows.edit(row.pk, Entry(task=ADD, args=[1], cron="0 3 1 1 *"))
    assert schedules._turn(stale) == 0  # a dispatcher that had read it before
    assert schedules.enqueue_due() == 0
    row.refresh_from_db()
    assert (row.next_at.month, row.next_at.day, row.next_at.hour) == (1, 1, 3)  # type: ignore[union-attr]


def test_a_change_that_is_not_of_its_times_loses_no_due_tick() -> None:
    row = minutely()
    first = due_since(row, timedelta(seconds=0))
    [stale] = rows.due()
    assert rows.edit(row.pk, Entry(task=ADD, args=[2], every_seconds=60.0, start_at=first))
    assert schedules._turn(stale) == 0  # a dispatcher that had read the old arguments
    assert schedules.enqueue_due() == 1
    assert enqueued() == [first.isoformat()]
    assert TaskRun.objects.get().args == [2]


# What the code declares ---------------------------------------------------------------------------------------------


def test_the_code_declares_and_an_edit_wins_until_it_is_taken_back() -> None:
    schedule("nightly", tasks.add, cron=crontab("0 3 * * *", timezone="Europe/Berlin"), args=[1])
    schedules.synchronise()
    row = Schedule.objects.get()
    assert (row.name, row.task, row.cron, row.timezone, row.edited) == (
        "nightly",
        ADD,
        "0 3 * * *",
        "Europe/Berlin",
        False,
    )
    schedules.synchronise()
    assert Schedule.objects.get().revision == row.revision
    assert rows.edit(row.pk, Entry(task=ADD, args=[1], cron="0 4 * * *", timezone="Europe/Berlin"))
    schedule("nightly", tasks.add, cron=crontab("0 5 * * *", timezone="Europe/Berlin"), args=[1])
    schedules.synchronise()
    row.refresh_from_db()
    assert (row.cron, row.edited, row.declared["cron"]) == ("0 4 * * *", True, "0 5 * * *")  # type: ignore[index]
    assert rows.restore(row.pk)
    row.refresh_from_db()
    assert (row.cron, row.edited) == ("0 5 * * *", False)
    assert row.next_at.astimezone(ZoneInfo("Europe/Berlin")).hour == 5  # type: ignore[union-attr]
    assert not rows.restore(row.pk)


def test_a_declaration_that_stumbles_keeps_no_other_from_its_row(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("first", "second", "third"):
        schedule(name, tasks.add, every=MINUTE, args=[1])
    declare = rows.declare

    def stumbles(name: str, entry: Entry) -> bool:
        if name == "second":
            raise RuntimeError("nobody foresaw it")
        return declare(name, entry)

    monkeypatch.setattr(rows, "declare", stumbles)
    schedules.synchronise()
    assert set(Schedule.objects.values_list("name", flat=True)) == {"first", "third"}
    assert "Schedule 'second' of the code cannot be used: RuntimeError: nobody foresaw it" in caplog.text


def test_a_declaration_that_is_gone_disables_its_row(declared: dict[str, Any]) -> None:
    by_hand = minutely()
    schedule("nightly", tasks.add, every=MINUTE, args=[1])
    schedules.synchronise()
    declared.clear()
    schedules.synchronise()
    row = Schedule.objects.get(name="nightly")
    assert row.withdrawn_at is not None
    due_since(row, timedelta(0))
    assert schedules.enqueue_due() == 0
    schedule("nightly", tasks.add, every=MINUTE, args=[1])
    schedules.synchronise()
    row.refresh_from_db()
    assert row.withdrawn_at is None
    by_hand.refresh_from_db()
    assert by_hand.withdrawn_at is None


def test_what_could_not_be_imported_is_not_taken_for_gone(
    declared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule("nightly", tasks.add, every=MINUTE, args=[1])
    schedules.synchronise()
    declared.clear()
    monkeypatch.setattr(schedules, "_discover_once", lambda: ("shop.tasks cannot be imported",))
    schedules.synchronise()
    assert Schedule.objects.get().withdrawn_at is None


def test_only_the_current_release_says_what_the_code_declares(declared: dict[str, Any], settings: Any) -> None:
    Release.objects.create(id=1, image="shop:2", version=2)
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "IMAGE": "shop:1"}
    schedule("nightly", tasks.add, every=MINUTE, args=[1])
    schedules.synchronise()
    assert not Schedule.objects.exists()
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "IMAGE": "shop:2"}
    schedules.synchronise()
    assert Schedule.objects.exists()


def test_a_decorated_task_is_scheduled_under_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    made = machine_task(schedule=timedelta(minutes=5))(hourly_work)
    monkeypatch.setattr(schedules, "registered", lambda: {"shop.tasks.hourly_work": made})
    found = schedules.declarations()
    assert set(found) == {"shop.tasks.hourly_work"}
    assert schedules.entry_of(found["shop.tasks.hourly_work"]).every_seconds == 300.0


def hourly_work() -> None:
    """A function that a test makes a task."""


def test_a_task_that_was_renamed_is_told_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    renamed = rows.create("renamed", Entry(task="tests.workshop.tasks.ad", every_seconds=60.0))
    assert renamed is not None
    other = minutely()
    for row in (renamed, other):
        due_since(row, timedelta(0))
    with caplog.at_level(logging.WARNING, "machinequeue"):
        assert schedules.enqueue_due() == 1
        schedules.enqueue_due()
    [(name, said)] = rows.failing()
    assert name == "renamed"
    assert said.startswith("Task 'tests.workshop.tasks.ad' cannot be imported (ImportError: Module")
    assert said.endswith(f"Was it renamed? Did you mean {ADD!r}?")
    assert caplog.text.count("schedule.failed") == 1
    renamed.refresh_from_db()
    assert renamed.failed_at is not None
    Schedule.objects.filter(pk=renamed.pk).update(task=ADD, args=[1])
    assert schedules.enqueue_due() == 1  # the tick still waits for who knows the task
    assert rows.failing() == []


# What others ask ----------------------------------------------------------------------------------------------------


def test_lateness_is_that_of_the_longest_overdue() -> None:
    assert rows.lateness() == 0.0
    row = minutely(start_at=now() + timedelta(hours=1))
    assert (rows.lateness(), rows.late()) == (0.0, [])
    due_since(row, timedelta(hours=2))
    assert 7200 <= rows.lateness() < 7300 + 600
    assert rows.late() == ["minutely"]
    assert rows.late(86_400) == []
    rows.set_paused(row.pk, paused=True)
    assert rows.lateness() == 0.0


def test_old_ticks_are_deleted_but_the_newest_and_the_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "KEPT_TICKS", 3)
    row = minutely()
    run = tasks.add.enqueue(1)
    begin = now() - timedelta(days=2)
    for number in range(10):
        ScheduleTick.objects.create(
            schedule=row,
            due_at=begin + number * MINUTE,
            won_at=begin + number * MINUTE,
            run_id=run.id if not number else None,
        )
    assert rows.prune() == 6
    kept = [tick.due_at for tick in ScheduleTick.objects.order_by("due_at")]
    assert kept == [begin + number * MINUTE for number in (0, 7, 8, 9)]
    assert rows.prune() == 0


def test_run_now_enqueues_beside_the_timetable() -> None:
    row = minutely()
    before = row.next_at
    run_id = schedules.run_now(row)
    [tick] = ScheduleTick.objects.all()
    assert (tick.run_id, tick.note) == (run_id, "asked for by hand")
    row.refresh_from_db()
    assert row.next_at == before
    assert TaskRun.objects.get().metadata["scheduled_at"] == tick.due_at.isoformat()


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "place", "said"),
    [
        ({"task": "tests.workshop.tasks.ad"}, "task", f"Did you mean {ADD!r}?"),
        ({"task": "os.path.join"}, "task", "'os.path.join' is no task."),
        ({"args": []}, "args", "missing a required argument: 'a'"),
        ({"kwargs": {"c": 1}}, "args", "unexpected keyword argument 'c'"),
        ({"queue": "report"}, "queue", "Did you mean 'reports'?"),
        ({"options": {"memory": 512}}, "options", "Did you mean 'memory_mb'?"),
        ({"options": {"memory_mb": 300}}, "options", "memory_mb=300 does not go with 1 shared CPU"),
        ({"options": {"timeout": 10_000.0}}, "options", "longer than machine_life"),
        ({"cron": "0 3 * *", "every_seconds": None}, "cron", "it has 4 fields"),
        ({"cron": "0 3 * * *"}, "cron", "one of cron, interval and a single moment; this has 2"),
        ({"every_seconds": None}, "cron", "this has 0"),
        ({"every_seconds": 0.1}, "every_seconds", "at least one second"),
        ({"every_seconds": 3e11}, "every_seconds", "at most 100 years"),
        ({"every_seconds": 1e300}, "every_seconds", "at most 100 years"),
        ({"timezone": "Europe/Berln"}, "timezone", "Did you mean 'Europe/Berlin'?"),
        ({"jitter_seconds": -1.0}, "jitter_seconds", "at least 0"),
        ({"misfire": "lates"}, "misfire", "Did you mean 'latest'?"),
        ({"misfire_limit": 0}, "misfire_limit", "At least 1"),
        ({"misfire_limit": 1001}, "misfire_limit", "At most 1000"),
        ({"max_running": -1}, "max_running", "which is no limit"),
        (
            {"start_at": datetime(2026, 2, 1, tzinfo=UTC), "end_at": datetime(2026, 1, 1, tzinfo=UTC)},
            "end_at",
            "ends before it starts",
        ),
    ],
)
def test_what_could_not_be_enqueued_is_said_by_field(values: dict[str, Any], place: str, said: str) -> None:
    found = schedules.problems(Entry(**{"task": ADD, "args": [1], "every_seconds": 60.0, **values}))
    assert list(found) == [place]
    assert said in found[place]


def test_what_is_right_has_no_problems() -> None:
    entry = Entry(task=ADD, args=[1], cron="0 3 * * *", timezone="Asia/Tokyo", queue="reports", options={"cpus": 2})
    assert schedules.problems(entry) == {}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: schedule("", tasks.add, every=MINUTE), "a text of 1 to 255 characters, not ''"),
        (lambda: schedule("x", tasks.add), "needs one of every=, cron= and at=; 0 are given"),
        (lambda: schedule("x", tasks.add, evry=MINUTE), "has no option 'evry'. Did you mean 'every'?"),
        (lambda: schedule("x", tasks.add, every=MINUTE, memory=512), "no option 'memory'. Did you mean 'memory_mb'?"),
        (lambda: schedule("x", tasks.add, every=MINUTE, cron="@daily"), "2 are given"),
        (lambda: schedule("x", tasks.add, cron="0 3"), "Schedule 'x': '0 3' is no cron expression"),
        (
            lambda: schedule("x", tasks.add, every=MINUTE, start=datetime(2026, 1, 1)),  # noqa: DTZ001
            "The start of schedule 'x' is a datetime with a time zone",
        ),
        (lambda: schedule("x", tasks.add, every=MINUTE, end=now().date()), "The end of schedule 'x' is a datetime"),
        (lambda: schedule("x", tasks.add, every=timedelta.max), "Schedule 'x': An interval is at most 100 years"),
        (lambda: schedule("x", len, every=MINUTE), "needs a task made with @machine_task"),  # type: ignore[arg-type]
        (lambda: schedule("x", tasks.add, every=MINUTE, misfire="al"), "Did you mean 'all'?"),
        (lambda: machine_task(schedule="0 3 * * *"), "A schedule is crontab('0 3 * * *')"),  # type: ignore[call-overload]
    ],
)
def test_what_the_code_cannot_mean_is_refused_at_import(make: Any, said: str) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        make()
    assert said in str(caught.value)


def test_the_system_check_tells_what_is_wrong_with_the_code() -> None:
    schedule("fine", tasks.add, every=MINUTE, args=[1])
    schedule("lost", "shop.tasks.gone", cron="@daily")
    schedule("empty", tasks.add, every=MINUTE)
    schedule("lane", tasks.add, every=MINUTE, args=[1], queue="report")
    found = {(problem.id, str(problem.msg)) for problem in check_schedules()}
    assert {number for number, _ in found} == {"machinequeue.E006"}
    told = sorted(text for _, text in found)
    assert [text.partition(":")[0] for text in told] == ["Schedule 'empty'", "Schedule 'lane'", "Schedule 'lost'"]
    assert "missing a required argument: 'a'" in told[0]
    assert "Did you mean 'reports'?" in told[1]
    assert "Task 'shop.tasks.gone' cannot be imported (ModuleNotFoundError: No module named 'shop')" in told[2]


def test_a_backend_that_is_none_is_told(settings: Any) -> None:
    schedule("fine", tasks.add, every=MINUTE, args=[1])
    settings.TASKS = {"default": {"BACKEND": "machinequeue.MachineBackedn"}}
    [problem] = check_schedules()
    assert "machinequeue.MachineBackedn" in str(problem.msg)


def test_what_is_wrong_for_all_is_not_told_again_of_each_schedule(settings: Any) -> None:
    schedule("lost", "shop.tasks.gone", cron="@daily")
    assert [problem.id for problem in check_schedules()] == ["machinequeue.E006"]
    settings.MACHINEQUEUE = {"HEARTBEATS": 3}
    assert check_schedules() == [], "E001 tells it"


def test_a_module_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError(f"no {name}")

    monkeypatch.setattr(schedules, "import_module", broken)
    found = [problem for problem in check_schedules() if problem.id == "machinequeue.W005"]
    said = [str(problem.msg) for problem in found]
    assert "demo_site.store.tasks cannot be imported: RuntimeError: no demo_site.store.tasks" in said


def test_dispatchers_are_not_needed_for_the_rows_to_be_read() -> None:
    assert not Dispatcher.objects.exists()
    assert rows.ticks(minutely().pk, 5) == []
