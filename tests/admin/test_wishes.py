"""Retry, cancel, pause and resume: what changes, what the operator is told, what is logged, and who may."""

import json
import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client

from machinequeue.admin import wishes
from machinequeue.models import Queue, TaskRun
from machinequeue.records import runs
from tests.admin import rows

RUNS = "/admin/machinequeue/taskrun/"
QUEUES = "/admin/machinequeue/queue/"


def act(client: Client, address: str, action: str, chosen: list[Any], **more: Any) -> list[str]:
    """Choose rows and an action as the list's form does; the messages that come back."""
    data = {"action": action, "_selected_action": [str(row.pk) for row in chosen], **more}
    answer = client.post(address, data, follow=True)
    assert answer.status_code == 200
    return [str(message) for message in answer.context["messages"]]


def statuses(*chosen: TaskRun) -> list[str | None]:
    return [runs.status(run.pk) for run in chosen]


def logged() -> list[tuple[str | None, str]]:
    return [(entry.object_id, entry.change_message) for entry in LogEntry.objects.order_by("pk")]


def failed() -> TaskRun:
    return rows.fail(rows.start(rows.enqueue(max_attempts=1)))


def test_retry_of_many(operator: Client) -> None:
    again = [failed(), failed(), failed()]
    succeeded, waits = rows.succeed(rows.start(rows.enqueue())), rows.enqueue()
    told = act(operator, RUNS, "retry_runs", [*again, succeeded, waits])
    assert told == [
        "3 runs will be tried again; 1 has not finished and was left alone; 1 had succeeded and was left alone."
    ]
    assert statuses(*again, succeeded, waits) == ["READY"] * 3 + ["SUCCESSFUL", "READY"]
    assert sorted(logged()) == sorted((str(run.pk), "Retried.") for run in again)
    run = TaskRun.objects.get(pk=again[0].pk)
    assert (run.task_attempts, run.finished_at, run.reason) == (0, None, "retried by hand")
    assert rows.succeed(rows.start(run)).status == "SUCCESSFUL"


def test_retry_of_what_expired_does_not_expire_again(operator: Client) -> None:
    run = rows.enqueue()
    TaskRun.objects.filter(pk=run.pk).update(expires_at=run.enqueued_at)
    assert runs.expire() == 1
    act(operator, RUNS, "retry_runs", [run])
    assert runs.expire() == 0
    assert statuses(run) == ["READY"]
    assert rows.start(run)


def test_cancel_of_many(operator: Client) -> None:
    waits, held, done = rows.enqueue(), rows.start(rows.enqueue()), failed()
    told = act(operator, RUNS, "cancel_runs", [waits, held.run, done])
    assert told == ["1 run was cancelled; 1 running run was asked to stop; 1 had finished and was left alone."]
    assert statuses(waits, held.run, done) == ["CANCELLED", "RUNNING", "FAILED"]
    assert held.again().cancel_requested_at is not None
    assert sorted(logged()) == sorted(
        [(str(waits.pk), "Cancelled before it started."), (str(held.run.pk), "Asked to stop.")]
    )
    assert "asked to stop" in operator.get(RUNS).content.decode()


def test_an_action_on_the_whole_filter_is_bounded(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes, "MOST", 2)
    made = [rows.enqueue() for _ in range(3)]
    told = act(operator, RUNS, "cancel_runs", made, select_across="1")
    assert told == [
        "2 runs were cancelled.",
        "There are more: an action takes the newest 2 runs at a time. Do it again for the rest.",
    ]
    assert statuses(*made) == ["READY", "CANCELLED", "CANCELLED"]


def test_an_action_on_a_filtered_list_takes_only_what_it_shows(operator: Client) -> None:
    kept, gone = rows.enqueue(queue="default"), rows.enqueue(queue="images")
    act(operator, f"{RUNS}?queue=images", "cancel_runs", [gone], select_across="1")
    assert statuses(kept, gone) == ["READY", "CANCELLED"]


@pytest.mark.parametrize(("wish", "status"), [("retry", "READY"), ("cancel", "CANCELLED")])
def test_the_button_asks_first(operator: Client, wish: str, status: str) -> None:
    run = failed() if wish == "retry" else rows.enqueue()
    before = statuses(run)
    address = f"{RUNS}{run.pk}/{wish}/"
    assert f'href="{address}"' in operator.get(f"{RUNS}{run.pk}/change/").content.decode()
    question = operator.get(address)
    assert question.status_code == 200
    assert str(run.pk) in question.content.decode()
    assert statuses(run) == before
    answer = operator.post(address, follow=True)
    assert answer.redirect_chain == [(f"{RUNS}{run.pk}/change/", 302)]
    assert len(list(answer.context["messages"])) == 1
    assert statuses(run) == [status]
    assert [entry[0] for entry in logged()] == [str(run.pk)]
    assert len(operator.get(f"{RUNS}{run.pk}/history/").context["action_list"]) == 1


def test_buttons_fit_the_status(operator: Client) -> None:
    def buttons(run: TaskRun) -> list[str]:
        return re.findall(r'class="mq-wish-(\w+)"', operator.get(f"{RUNS}{run.pk}/change/").content.decode())

    assert buttons(rows.enqueue()) == ["cancel"]
    held = rows.start(rows.enqueue())
    assert buttons(held.run) == ["cancel"]
    runs.cancel(held.run.pk)
    assert buttons(held.run) == []
    assert buttons(failed()) == ["retry"]
    assert buttons(rows.succeed(rows.start(rows.enqueue()))) == []


def test_a_wish_that_comes_too_late_is_told_so(operator: Client) -> None:
    run = rows.succeed(rows.start(rows.enqueue()))
    answer = operator.post(f"{RUNS}{run.pk}/cancel/", follow=True)
    (message,) = answer.context["messages"]
    assert (str(message), message.level_tag) == ("1 had finished and was left alone.", "warning")
    assert logged() == []


def test_who_may_look_may_not_press(reader: Client) -> None:
    waits, over = rows.enqueue(), failed()
    listing = reader.get(RUNS).content.decode()
    assert "make_receipt" in listing
    assert "retry_runs" not in listing
    assert "cancel_runs" not in listing
    assert "mq-wish" not in reader.get(f"{RUNS}{waits.pk}/change/").content.decode()
    for run, wish in ((waits, "cancel"), (over, "retry")):
        assert reader.get(f"{RUNS}{run.pk}/{wish}/").status_code == 403
        assert reader.post(f"{RUNS}{run.pk}/{wish}/").status_code == 403
        act(reader, RUNS, f"{wish}_runs", [run])
    assert statuses(waits, over) == ["READY", "FAILED"]
    assert logged() == []


def test_each_wish_has_its_own_permission(reader: Client) -> None:
    User.objects.get().user_permissions.add(Permission.objects.get(codename="retry_taskrun"))
    waits, over = rows.enqueue(), failed()
    assert act(reader, RUNS, "retry_runs", [over]) == ["1 run will be tried again."]
    assert reader.post(f"{RUNS}{waits.pk}/cancel/").status_code == 403
    assert statuses(waits, over) == ["READY", "READY"]


def test_a_permission_without_view_is_not_enough(db: None, client: Client) -> None:
    user = User.objects.create_user("odd", password="odd", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="cancel_taskrun"))
    client.force_login(user)
    run = rows.enqueue()
    assert client.post(f"{RUNS}{run.pk}/cancel/").status_code == 403
    assert statuses(run) == ["READY"]


def test_a_wish_needs_the_token_against_forgery(operator: Client) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get())
    run = rows.enqueue()
    assert strict.post(f"{RUNS}{run.pk}/cancel/").status_code == 403
    assert statuses(run) == ["READY"]


def test_pause_and_resume(operator: Client) -> None:
    held = rows.start(rows.enqueue())
    rows.launch(rows.enqueue(queue="images"))
    queue = Queue.objects.get(name="default")
    assert act(operator, QUEUES, "pause_queues", [queue]) == [
        "1 queue is paused. Its running runs go on; no other starts."
    ]
    run = rows.enqueue()
    assert not runs.due().filter(pk=run.pk).exists()
    assert runs.why(run) == "waiting: queue default is paused"
    assert rows.succeed(held).status == "SUCCESSFUL"
    assert act(operator, QUEUES, "pause_queues", [queue]) == ["Nothing changed: they were so already."]
    assert act(operator, QUEUES, "resume_queues", [queue]) == ["1 queue goes on."]
    assert runs.due().filter(pk=run.pk).exists()
    assert logged() == [(str(queue.pk), "Paused."), (str(queue.pk), "Resumed.")]
    assert Queue.objects.get(name="images").paused_at is None


def test_who_may_look_may_not_pause(reader: Client) -> None:
    rows.launch(rows.enqueue())
    queue = Queue.objects.get(name="default")
    assert "pause_queues" not in reader.get(QUEUES).content.decode()
    act(reader, QUEUES, "pause_queues", [queue])
    queue.refresh_from_db()
    assert queue.paused_at is None


def test_the_log_is_readable(operator: Client) -> None:
    run = failed()
    operator.post(f"{RUNS}{run.pk}/retry/")
    entry = LogEntry.objects.get()
    assert entry.get_change_message() == "Retried."
    assert str(run.pk) in entry.object_repr
    with pytest.raises(json.JSONDecodeError):
        json.loads(entry.change_message)
