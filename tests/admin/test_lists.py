"""The lists: what they show, how they are narrowed, and that their cost does not grow with the rows."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from machinequeue.admin.readonly import BoundedPaginator
from machinequeue.models import Machine, Queue, TaskProfile, TaskRun
from machinequeue.records import dispatchers, machines, queues, runs
from tests.admin import rows

RUNS = "/admin/machinequeue/taskrun/"
MACHINES = "/admin/machinequeue/machine/"
QUEUES = "/admin/machinequeue/queue/"
DISPATCHERS = "/admin/machinequeue/dispatcher/"
CIRCUITS = "/admin/machinequeue/circuit/"
PROFILES = "/admin/machinequeue/taskprofile/"


def page(client: Client, address: str, **filters: Any) -> str:
    answer = client.get(address, filters)
    assert answer.status_code == 200
    return answer.content.decode()


def listed(client: Client, **filters: Any) -> set[str]:
    """The short names of the tasks that the list of runs shows."""
    table = page(client, RUNS, **filters).partition('id="result_list"')[2].partition("</table>")[0]
    return set(re.findall(r'<span title="shop\.[^"]*">(\w+)</span>', table))


def test_every_status_is_a_word(operator: Client) -> None:
    rows.one_of_each()
    text = page(operator, RUNS)
    for word in ("Ready", "Running", "Successful", "Failed", "Cancelled"):
        assert re.search(rf'<span class="mq-badge mq-\w+">{word}</span>', text)
    for note in (
        "all 2 attempts are used",
        "the queue is paused",
        "1 of 1 machines busy in queue reports",
        "cancelled before it started",
        "reading purchases of 2025",
        "1 lost",
        "priority 10",
    ):
        assert note in text
    assert re.search(r"due in 1 d \d h", text)


def test_what_a_task_says_is_text(operator: Client) -> None:
    rows.fail(rows.start(rows.enqueue(max_attempts=1)), sentence="<script>alert(1)</script>")
    text = page(operator, RUNS)
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_figures(operator: Client) -> None:
    assert "start manage.py mq_dispatcher" in page(operator, RUNS)
    dispatchers.seen("web-1")
    assert "none leads" in page(operator, RUNS)
    dispatchers.lead("web-1", 60)
    rows.enqueue()
    rows.start(rows.enqueue())
    figures = page(operator, RUNS).partition('class="mq-figures"')[2].partition("</ul>")[0]
    assert re.findall(r"<strong>(\S+)</strong> (\w+)", figures) == [
        ("1", "waiting"),
        ("1", "running"),
        ("0", "failed"),
        ("1", "machine"),
        ("1", "dispatcher"),
    ]
    assert "mq-alarm" not in figures
    dispatchers.seen("web-2")
    assert "<strong>2</strong> dispatchers" in page(operator, RUNS)


def test_filters(operator: Client) -> None:
    rows.enqueue("shop.a.one", queue="default")
    rows.start(rows.enqueue("shop.a.two", queue="reports"))
    queues.reserve(runs.due_groups()[0], rows.no_room())
    assert listed(operator) == {"one", "two"}
    assert listed(operator, status__exact="RUNNING") == {"two"}
    assert listed(operator, queue="reports") == {"two"}
    assert listed(operator, task="shop.a.one") == {"one"}
    assert listed(operator, task="shop.a.never") == set()
    assert listed(operator, enqueued="hour") == {"one", "two"}


def test_enqueued_filter_reads_the_time_in_the_id(operator: Client) -> None:
    old, new = rows.enqueue("shop.a.old"), rows.enqueue("shop.a.new")
    two_hours = int(timedelta(hours=2).total_seconds() * 1000)
    TaskRun.objects.filter(pk=old.pk).update(id=type(old.pk)(int=old.pk.int - (two_hours << 80)))
    assert listed(operator, enqueued="hour") == {"new"}
    assert listed(operator, enqueued="day") == {"old", "new"}
    assert new.pk.version == 7


@pytest.mark.parametrize("cut", [8, 13, 14, 20, 36])
def test_search_by_the_start_of_an_id(operator: Client, cut: int) -> None:
    run = rows.enqueue("shop.a.wanted")
    other = rows.enqueue("shop.a.other")
    # Ids of the same millisecond share their start; a far one must not be found.
    TaskRun.objects.filter(pk=other.pk).update(id=type(other.pk)(int=other.pk.int ^ (1 << 120)))
    assert listed(operator, q=str(run.pk)[:cut]) == {"wanted"}
    assert listed(operator, q=str(run.pk).replace("-", "").upper()[:cut]) == {"wanted"}


def test_search_by_task(operator: Client) -> None:
    rows.enqueue("shop.tasks.make_receipt")
    rows.enqueue("shop.tasks.add")  # "add" could be the start of an id as well
    assert listed(operator, q="receipt") == {"make_receipt"}
    assert listed(operator, q="add") == {"add"}
    assert listed(operator, q="tasks make") == {"make_receipt"}
    assert listed(operator, q="no such 'task%") == set()


@pytest.mark.parametrize("address", [RUNS, MACHINES, QUEUES, DISPATCHERS, CIRCUITS, PROFILES])
def test_number_of_queries_does_not_depend_on_rows(operator: Client, address: str) -> None:
    def more(count: int) -> None:
        for number in range(count):
            rows.enqueue(queue=f"q{Queue.objects.count()}-{number}")
            rows.fail(rows.start(rows.enqueue(max_attempts=1)))
            rows.start(rows.enqueue())
            dispatchers.seen(f"d{number}")
            rows.hold_back(rows.enqueue())
            rows.learn(f"shop.a.t{TaskProfile.objects.count()}")

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            page(operator, address)
        return len(captured)

    more(1)
    queries()  # content types and sessions are cached from here on
    few = queries()
    more(8)
    assert queries() == few
    assert few < 30


@pytest.mark.parametrize("address", [RUNS, MACHINES])
def test_every_count_is_bounded(operator: Client, address: str) -> None:
    rows.one_of_each()
    with CaptureQueriesContext(connection) as captured:
        page(operator, address)
    counts = [query["sql"] for query in captured if "COUNT(" in query["sql"]]
    assert counts
    ours = [sql for sql in counts if "machinequeue_taskrun" in sql or "machinequeue_machine" in sql]
    assert ours
    assert all("LIMIT" in sql for sql in ours)


def test_more_rows_than_are_paged(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedPaginator, "rows", 3)
    for _ in range(3):
        rows.enqueue()
    assert "There are more than" not in page(operator, RUNS)
    rows.enqueue()
    assert "There are more than 3." in page(operator, RUNS)


def test_machines(operator: Client) -> None:
    rows.one_of_each()
    text = page(operator, MACHINES)
    for word in ("Busy", "Gone", "destroyed", "exit code 137", "performance-2x 2,048 MB", "iad"):
        assert word in text
    gone = Machine.objects.filter(status="gone")
    assert page(operator, MACHINES, life="gone").count('class="mq-name"') == gone.count()
    assert page(operator, MACHINES, q=gone[0].fly_id[:6]).count('class="mq-name"') == 1


def test_retiring_machines_say_why(operator: Client) -> None:
    stays, goes = rows.launch(rows.enqueue()), rows.launch(rows.enqueue())
    assert machines.retire(goes, "its image is not the current one")
    text = page(operator, MACHINES)
    assert re.search(r'<div class="mq-note ">its image is not the current one</div>', text)
    filtered = page(operator, MACHINES, status__exact="retiring")
    assert goes.name in filtered
    assert stays.name not in filtered


def test_queues_tell_why_runs_wait(operator: Client) -> None:
    rows.one_of_each()
    text = page(operator, QUEUES)
    assert re.findall(r'mq-badge mq-\w+">(\w+)<', text) == ["Open", "Paused", "Open"]
    assert text.count("1 of 1 machines busy in queue reports") == 1
    assert "a machine is being launched" not in text  # of a run that waits no more


def test_dispatchers(operator: Client) -> None:
    dispatchers.seen("web-1")
    dispatchers.seen("web-2")
    dispatchers.lead("web-2", 60)
    text = page(operator, DISPATCHERS)
    assert text.count(">Alive</span>") == 2
    assert text.count('mq-active">Leads</span>') == 1
