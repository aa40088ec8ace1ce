"""Schedules in the admin: add, edit and take back; run now, pause, resume; who may do what."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from machinequeue import schedules
from machinequeue.models import Schedule, ScheduleTick, TaskRun
from machinequeue.records import runs
from machinequeue.records import schedules as rows
from machinequeue.records.schedules import Entry
from tests.admin.test_lists import page
from tests.admin.test_wishes import act, logged
from tests.workshop import tasks

SCHEDULES = "/admin/machinequeue/schedule/"
ADD = tasks.add.module_path
VALUES = {
    "name": "nightly",
    "task": ADD,
    "enabled": "on",
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
    "args": "[1]",
    "kwargs": "{}",
    "jitter_seconds": "0",
    "misfire": "latest",
    "misfire_limit": "100",
    "max_running": "0",
}


def nightly(name: str = "nightly", **values: Any) -> Schedule:
    row = rows.create(name, Entry(**{"task": ADD, "args": [1], "cron": "30 2 * * *", **values}))
    assert row is not None
    return row


def declared(**values: Any) -> Schedule:
    rows.declare("declared", Entry(**{"task": ADD, "args": [1], "cron": "30 2 * * *", **values}))
    return Schedule.objects.get(name="declared")


def of(row: Schedule) -> str:
    return f"{SCHEDULES}{row.pk}/change/"


def errors(client: Client, **values: str) -> dict[str, list[str]]:
    answer = client.post(f"{SCHEDULES}add/", {**VALUES, **values})
    assert answer.status_code == 200, "it was saved"
    return {name: list(map(str, found)) for name, found in answer.context["adminform"].form.errors.items()}


def test_add_a_schedule(operator: Client) -> None:
    assert ADD in page(operator, f"{SCHEDULES}add/")
    answer = operator.post(f"{SCHEDULES}add/", {**VALUES, "options": '{"memory_mb": 1024}', "queue": "reports"})
    assert answer.status_code == 302
    row = Schedule.objects.get()
    assert (row.cron, row.timezone, row.args, row.kwargs, row.queue) == (
        "30 2 * * *",
        "Europe/Berlin",
        [1],
        {},
        "reports",
    )
    assert (row.options, row.declared, row.edited) == ({"memory_mb": 1024}, None, False)
    assert row.next_at is not None
    assert logged()[0][0] == str(row.pk)


@pytest.mark.parametrize(
    ("values", "place", "said"),
    [
        ({"cron": "30 2 * *"}, "cron", "it has 4 fields"),
        ({"cron": ""}, "cron", "this has 0"),
        ({"every_seconds": "60"}, "cron", "this has 2"),
        ({"args": "[]"}, "args", "missing a required argument: 'a'"),
        ({"args": "{}"}, "args", "A JSON list."),
        ({"args": "[1"}, "args", "Enter a valid JSON."),
        ({"kwargs": "[1]"}, "kwargs", "A JSON object."),
        ({"kwargs": '{"c": 1}'}, "args", "unexpected keyword argument 'c'"),
        ({"options": '{"memory_mb": 300}'}, "options", "memory_mb=300 does not go with"),
        ({"options": '{"memory": 512}'}, "options", "Did you mean 'memory_mb'?"),
        ({"queue": "nowhere"}, "queue", "nowhere is not one of the available choices"),
        ({"task": "os.system"}, "task", "os.system is not one of the available choices"),
        ({"timezone": "Europe/Berln"}, "timezone", "not one of the available choices"),
        ({"misfire_limit": "0"}, "misfire_limit", "At least 1"),
        (
            {"start_at_0": "2026-02-01", "start_at_1": "0:00", "end_at_0": "2026-01-01", "end_at_1": "0:00"},
            "end_at",
            "ends before",
        ),
    ],
)
def test_what_could_not_be_enqueued_is_not_saved(
    operator: Client, values: dict[str, str], place: str, said: str
) -> None:
    found = errors(operator, **values)
    assert list(found) == [place]
    assert said in found[place][0]
    assert not Schedule.objects.exists()


def test_a_name_is_given_once(operator: Client) -> None:
    nightly()
    assert list(errors(operator)) == ["name"]


def test_the_list_says_when_each_is_due_in_its_own_zone(operator: Client) -> None:
    nightly(timezone="Asia/Tokyo")
    nightly("often", cron="", every_seconds=300.0)
    row = declared()
    rows.edit(row.pk, Entry(task=ADD, args=[1], cron="0 4 * * *"))
    text = page(operator, SCHEDULES)
    for word in ("02:30:00", ">JST<", "every 5 min", "Edited", "By hand", "Asia/Tokyo", "tests.workshop.tasks.add"):
        assert word in text
    assert "nightly" not in page(operator, f"{SCHEDULES}?origin=edited")
    assert "declared" not in page(operator, f"{SCHEDULES}?origin=hand")


def test_the_list_costs_the_same_for_many(operator: Client, django_assert_num_queries: Any) -> None:
    nightly()
    page(operator, SCHEDULES)
    with django_assert_num_queries(4):
        page(operator, SCHEDULES)
    for number in range(20):
        nightly(f"nightly {number}")
    with django_assert_num_queries(4):
        page(operator, SCHEDULES)


def test_the_page_shows_the_next_times_and_what_became_of_the_last(operator: Client) -> None:
    row = nightly(cron="", every_seconds=100_000.0, timezone="Asia/Tokyo", max_running=1)
    for ago in (200_000, 100_000):
        due = runs.database_now() - timedelta(seconds=ago)
        Schedule.objects.filter(pk=row.pk).update(next_at=due, start_at=due)
        schedules.enqueue_due()
    text = page(operator, of(row))
    assert text.count(" JST") == 1 + 5 + 2  # the next, the next five, the last two
    assert "left out: 1 of 1 runs had not finished" in text
    run = TaskRun.objects.get()
    assert f"/admin/machinequeue/taskrun/{run.pk}/change/" in text


def test_an_edit_counts_until_it_is_taken_back(operator: Client) -> None:
    row = declared()
    answer = operator.post(of(row), {**VALUES, "cron": "0 4 * * *", "timezone": "UTC"})
    assert answer.status_code == 302
    row.refresh_from_db()
    assert (row.cron, row.edited, row.name) == ("0 4 * * *", True, "declared")
    text = page(operator, of(row))
    assert "It was edited here, and that counts. The code says:" in text
    assert "30 2 * * *" in text
    assert operator.post(f"{SCHEDULES}{row.pk}/restore/").status_code == 302
    row.refresh_from_db()
    assert (row.cron, row.edited) == ("30 2 * * *", False)
    assert "As the code says" not in page(operator, of(row))


def test_run_now_pause_and_resume(operator: Client) -> None:
    row = nightly()
    question = page(operator, f"{SCHEDULES}{row.pk}/run_now/")
    assert "Run this schedule now?" in question
    assert not TaskRun.objects.exists()
    answer = operator.post(f"{SCHEDULES}{row.pk}/run_now/", follow=True)
    assert [str(message) for message in answer.context["messages"]] == ["1 run is enqueued."]
    assert ScheduleTick.objects.get().run_id == TaskRun.objects.get().pk
    assert act(operator, SCHEDULES, "pause_schedules", [row]) == ["1 schedule is paused."]
    assert "Paused" in page(operator, of(row))
    assert act(operator, SCHEDULES, "pause_schedules", [row]) == ["Nothing changed: they were so already."]
    assert act(operator, SCHEDULES, "resume_schedules", [row]) == ["1 schedule goes on."]
    assert sorted(text for _pk, text in logged()) == ["Paused.", "Ran now.", "Resumed."]


def test_what_cannot_be_run_says_why(operator: Client) -> None:
    row = nightly(task="tests.workshop.tasks.ad")
    [told] = act(operator, SCHEDULES, "run_schedules", [row])
    assert told.startswith("nightly: Task 'tests.workshop.tasks.ad' cannot be imported")
    schedules_due = runs.database_now() - timedelta(minutes=5)
    Schedule.objects.filter(pk=row.pk).update(next_at=schedules_due)
    schedules.enqueue_due()
    text = page(operator, of(row))
    assert "Failing" in text
    assert "Was it renamed?" in text
    assert logged() == []


def test_what_the_code_declares_cannot_be_deleted_until_it_is_gone(operator: Client) -> None:
    row, by_hand = declared(), nightly()
    assert operator.post(f"{SCHEDULES}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert operator.post(f"{SCHEDULES}{by_hand.pk}/delete/", {"post": "yes"}).status_code == 302
    rows.withdraw([])
    assert "Gone from the code" in page(operator, of(row))
    assert operator.post(f"{SCHEDULES}{row.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("codename", ["", "change_schedule"])
def test_who_may_look_may_not_run_or_pause(reader: Client, codename: str) -> None:
    User.objects.get().user_permissions.add(*Permission.objects.filter(codename=codename))
    row = nightly()
    text = page(reader, of(row))
    assert "mq-wish" not in text
    assert ('name="cron"' in text) == bool(codename)
    for wish in ("run_now", "pause", "resume"):
        assert reader.post(f"{SCHEDULES}{row.pk}/{wish}/").status_code == 403
    assert reader.post(f"{SCHEDULES}{row.pk}/restore/").status_code == (302 if codename else 403)
    assert reader.get(f"{SCHEDULES}add/").status_code == 403
    assert not TaskRun.objects.exists()


def test_it_speaks_german(operator: Client) -> None:
    row = nightly()
    text = operator.get(of(row), headers={"accept-language": "de"}).content.decode()
    for words in ("Nächste Zeiten in UTC", "Jetzt ausführen", "Zeitplan", "Letzte Termine", "Zeitzone"):
        assert words in text
