"""A row's own page, and that nothing can be changed by any door of Django's admin."""

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from machinequeue.lifecycle import AttemptStatus
from machinequeue.models import Circuit, Dispatcher, Machine, Queue, TaskProfile, TaskRun
from machinequeue.records import claims, dispatchers, machines, runs
from tests.admin import rows


def page(client: Client, row: TaskRun | Machine | Queue | Dispatcher) -> str:
    answer = client.get(f"/admin/machinequeue/{row._meta.model_name}/{row.pk}/change/")
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_failed_run_explains_itself(operator: Client) -> None:
    run = rows.one_of_each()["failed"]
    text = page(operator, run)
    sentence = "operand type(s) for *: &#x27;NoneType&#x27; and &#x27;int&#x27;; all 2 attempts are used"
    assert text.index(sentence) < text.index('<fieldset class="module')
    assert "2/2" in text
    assert len(re.findall(r"mq-badge mq-bad.>Failed<", text)) == 3  # the run and two attempts
    assert "exit code 1<" in text
    assert "131 MB" in text
    assert "620 ms" in text
    assert "in &lt;genexpr&gt;" in text
    assert "builtins.TypeError" in text
    assert f"/admin/machinequeue/machine/{run.attempts.get(epoch=2).machine_id}/change/" in text
    assert "[12 bytes dropped]" in text
    assert "&lt;b&gt;not bold&lt;/b&gt;" in text
    assert "<b>not bold" not in text
    assert "data-mq-live" not in text


def test_arguments_and_return_value_are_json(operator: Client) -> None:
    text = page(operator, rows.one_of_each()["successful"])
    assert ">[42]</pre>" in text
    assert "&quot;language&quot;: &quot;de&quot;" in text
    assert "&quot;bytes&quot;: 18233" in text


def test_a_diagnosis_says_what_to_do(operator: Client) -> None:
    held = rows.start(rows.enqueue(max_attempts=1))
    rows.fail(held, status=AttemptStatus.OUT_OF_MEMORY, signal=None, remedy="Give the task more memory_mb.")
    text = page(operator, held.again())
    assert "Out of memory" in text
    assert "<strong>What to do:</strong> Give the task more memory_mb." in text


def test_a_killed_process_shows_its_signal(operator: Client) -> None:
    held = rows.start(rows.enqueue())
    failure = rows.failure()
    assert claims.fail(held.run.pk, held.claim.epoch, failure, claims.Report(signal=9, seconds=3.0))
    assert "signal 9" in page(operator, held.run)


def test_a_running_run_shows_progress_and_refreshes(operator: Client) -> None:
    text = page(operator, rows.one_of_each()["running"])
    assert '<progress class="mq-progress" value="1240" max="3000">41%</progress>' in text
    assert "running: attempt 2 on mq-reports-" in text
    assert "data-mq-live" in text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"current": 3, "total": None, "message": "third"}, "third"),
        ({"current": 3, "total": 0, "message": ""}, "3"),
        ({"current": 9, "total": 3, "message": ""}, ">100%</progress>"),
        ({"message": "<i>"}, "&lt;i&gt;"),
    ],
)
def test_odd_progress(operator: Client, said: dict[str, object], shown: str) -> None:
    held = rows.start(rows.enqueue())
    claims.heartbeat(held.claim, lease_seconds=60, pid=1, progress=said)
    assert shown in page(operator, held.run)


def test_a_run_whose_machine_row_was_pruned(operator: Client) -> None:
    held = rows.start(rows.enqueue())
    rows.succeed(held)
    held.machine.delete()
    assert "Successful" in page(operator, held.run)
    assert "make_receipt" in operator.get("/admin/machinequeue/taskrun/").content.decode()


def test_why_a_run_waits(operator: Client) -> None:
    run = rows.enqueue()
    assert "no dispatcher is running (none was ever seen)" in page(operator, run)
    dispatchers.seen("web-1")
    assert "a dispatcher will see it within a second" in page(operator, run)
    assert "No machine has claimed it yet." in page(operator, run)
    assert "Nothing was printed." in page(operator, run)


def test_machine_page(operator: Client) -> None:
    held = rows.start(rows.enqueue())
    rows.fail(held)
    text = page(operator, held.machine)
    assert f'/admin/machinequeue/taskrun/{held.run.pk}/change/"' in text
    assert "TypeError: unsupported" in text
    assert "imports 210 ms, set-up 340 ms" in text
    assert "01JD-iad" in text
    assert "data-mq-live" in text
    rows.gone(held, exit_code=3)
    gone = page(operator, held.machine)
    assert "exit code 3" in gone
    assert "data-mq-live" not in gone


def test_a_machine_s_page_tells_when_fly_started_it_and_why_it_retires(operator: Client) -> None:
    machine = rows.launch(rows.enqueue(), booted=False)
    assert not re.search(r"Started:.{0,200}20\d\d-", page(operator, machine), re.DOTALL)
    machines.seen(machine, "started")
    machine.refresh_from_db()
    assert re.search(r"Started:.{0,200}20\d\d-\d\d-\d\d \d\d:", page(operator, machine), re.DOTALL)
    assert "It claims nothing more" not in page(operator, machine)
    machines.retire(machine, "its image is not the current one")
    assert "It claims nothing more and goes: its image is not the current one" in page(operator, machine)


def test_attempts_that_ran_out_of_memory_say_what_comes_next(operator: Client) -> None:
    first = rows.start(rows.enqueue(max_attempts=1))
    spec = {**rows.SPEC, "cpus": 1, "max_memory_mb": 4096}
    TaskRun.objects.filter(pk=first.run.pk).update(spec=spec)
    run = rows.starve(first)
    assert run.spec["memory_mb"] == 4096
    text = page(operator, run)
    assert "2,021 MB of 2,048 MB" in text
    assert "<strong>Then:</strong> It is tried again with 4,096 MB." in text
    TaskRun.objects.filter(pk=run.pk).update(run_after=run.enqueued_at)
    run = rows.starve(rows.start(first.again()), 4050)
    text = page(operator, run)
    assert "It was tried again with 4,096 MB." in text
    assert "4,050 MB of 4,096 MB" in text
    assert "No run of it may have more than 4,096 MB (max_memory_mb)." in text
    assert text.count("Then:") == 2


def test_a_run_that_failed_before_a_machine_claimed_it(operator: Client) -> None:
    run = rows.enqueue()
    assert runs.refuse(run.backend, run.queue, run.spec_key, "no such size") == 1
    text = page(operator, run)
    assert "no such size" in text
    assert "No machine claimed it." in text


def test_queue_and_dispatcher_pages(operator: Client) -> None:
    rows.one_of_each()
    assert "1 of 1 machines busy in queue reports" in page(operator, Queue.objects.get(name="reports"))
    assert "Alive" in page(operator, Dispatcher.objects.earliest("pk"))


@pytest.mark.parametrize("text", ["nonsense", "00000000-0000-7000-8000-000000000000"])
@pytest.mark.parametrize("door", ["change", "retry", "cancel"])
def test_an_id_of_nothing(operator: Client, text: str, door: str) -> None:
    answer = operator.get(f"/admin/machinequeue/taskrun/{text}/{door}/", follow=True)
    assert answer.status_code == 200
    assert "doesn’t exist. Perhaps it was deleted?" in answer.content.decode()


MODELS: dict[str, Any] = {
    "taskrun": TaskRun,
    "machine": Machine,
    "queue": Queue,
    "dispatcher": Dispatcher,
    "circuit": Circuit,
    "taskprofile": TaskProfile,
}


@pytest.mark.parametrize("model", [*MODELS])
def test_nothing_can_be_added_changed_or_deleted(operator: Client, model: str) -> None:
    rows.hold_back(rows.one_of_each()["ready"])
    rows.learn()
    made = MODELS[model]
    row = made.objects.exclude(pk__in=Queue.objects.filter(name="").values("pk") if model == "queue" else []).first()
    assert row is not None
    before = made.objects.filter(pk=row.pk).values().get()
    address = f"/admin/machinequeue/{model}/"
    assert operator.get(f"{address}add/").status_code == 403
    assert operator.post(f"{address}add/", {"status": "READY"}).status_code == 403
    assert operator.post(f"{address}{row.pk}/change/", {"status": "FAILED", "name": "x"}).status_code == 403
    assert operator.post(f"{address}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    operator.post(address, {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"})
    assert made.objects.filter(pk=row.pk).values().get() == before


def test_strangers_see_nothing(client: Client, db: None) -> None:
    for model in MODELS:
        assert client.get(f"/admin/machinequeue/{model}/").status_code == 302
    run = rows.enqueue()
    answer = client.post(f"/admin/machinequeue/taskrun/{run.pk}/cancel/")
    assert answer.status_code == 302
    assert "/login/" in answer["Location"]
    assert runs.status(run.pk) == "READY"


def test_the_number_of_a_fresh_id_is_its_time(db: None) -> None:
    """The filter by time of enqueue rests on it."""
    run = rows.enqueue()
    assert isinstance(run.pk, uuid.UUID)
    drawn = datetime.fromtimestamp((run.pk.int >> 80) / 1000, UTC)
    assert abs(drawn - run.enqueued_at) < timedelta(minutes=1)
