"""Metrics: read back with Prometheus's own parser, from rows alone, in a number of queries that does not grow."""

import sys
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read

from machinequeue import conf, metrics
from machinequeue.lifecycle import DrillStatus
from machinequeue.models import TaskRun
from machinequeue.records import api, backups, dispatchers, profiles
from tests.admin import rows
from tests.health.test_report import ago, drilled, made

pytestmark = pytest.mark.django_db(transaction=True)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(token: str, **headers: str) -> Samples:
    """What Prometheus reads, by name (without our prefix) and labels."""
    answer = Client().get("/ht/metrics", headers={"authorization": f"Bearer {token}", **headers})
    assert answer.status_code == 200
    parse = read_openmetrics if "openmetrics" in answer["Content-Type"] else read
    families = list(parse(answer.content.decode()))
    assert all(family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples]
    assert all(sample.name.startswith("machinequeue_") for sample in samples)
    found = {
        (sample.name.removeprefix("machinequeue_"), frozenset(sample.labels.items())): sample.value
        for sample in samples
    }
    assert len(found) == len(samples)
    return found


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


LANE = {"backend": "default", "queue": "default"}


def test_an_empty_site(token: str) -> None:
    found = scrape(token)
    assert found[key("database_up")] == 1
    assert found[key("dispatchers")] == 0
    assert key("dispatcher_age_seconds") not in found
    assert found[key("schedule_lateness_seconds")] == 0
    for queue in conf.policies("default"):
        assert found[key("oldest_due_seconds", backend="default", queue=queue)] == 0
        assert found[key("runs_due", backend="default", queue=queue)] == 0


def test_runs_machines_and_attempts(token: str) -> None:
    dispatchers.seen("web-1-41-a1b2c3")
    api.answered(conf.settings().app)
    waiting = rows.enqueue()
    ago(waiting, 500, "run_after")
    rows.enqueue(queue="reports")
    rows.start(rows.enqueue())
    for seconds in (2, 4, 30):
        held = rows.start(rows.enqueue())
        ago(held.run.attempts.get(), seconds, "claimed_at")
        ago(held.run, seconds + 10, "run_after")
        rows.succeed(held)
        rows.gone(held)
    rows.fail(rows.start(rows.enqueue(max_attempts=1)))
    rows.lose(rows.start(rows.enqueue(max_attempts=1)))
    circuit = rows.hold_back(waiting)
    profiles.learn("shop.tasks.make_receipt", 12, 24.0, None)
    found = scrape(token)
    assert found[key("runs", **LANE, status="running")] == 1
    assert found[key("runs", **LANE, status="ready")] == 2  # the waiting, and the lost that starts again
    assert found[key("runs", backend="default", queue="reports", status="ready")] == 1
    assert 500 <= found[key("oldest_due_seconds", **LANE)] < 1000
    assert found[key("attempts_ended", **LANE, status="succeeded")] == 3
    assert found[key("attempts_ended", **LANE, status="failed")] == 1
    assert found[key("attempts_ended", **LANE, status="lost")] == 1
    assert 30 <= found[key("attempt_seconds", **LANE, quantile="1.0")] < 100
    assert found[key("attempt_seconds", **LANE, quantile="0.5")] < 30
    assert 10 <= found[key("wait_seconds", **LANE, quantile="1.0")] < 100
    assert found[key("machines", **LANE, status="busy")] >= 1
    assert not [labels for name, labels in found if name == "machines" and ("status", "gone") in labels]
    assert found[key("circuits", kind=circuit.kind, state="open")] == 1
    assert found[key("circuits", kind=circuit.kind, state="pausing")] == 0
    assert found[key("dispatchers")] == 1
    assert found[key("api_answer_age_seconds")] >= 0
    assert found[key("task_runs_succeeded_total", task="shop.tasks.make_receipt")] == 12
    assert found[key("task_usual_seconds", task="shop.tasks.make_receipt")] == pytest.approx(2)


def test_backups_and_drills(token: str) -> None:
    backup = made(size=42_000_000)
    ago(backup, 7200, "started_at")
    drilled(backup, DrillStatus.PROVEN)
    of = {"database": "default"}
    found = scrape(token)
    assert 7200 <= found[key("backup_age_seconds", **of)] < 8000
    assert found[key("backup_size_bytes", **of)] == 42_000_000
    assert (found[key("backup_failed", **of)], found[key("drill_proven", **of)]) == (0, 1)
    failed = backups.start(database="default", kind="database", name="y", run_id=None)
    backups.fail(failed.pk, "bucket not found")
    drilled(backup, DrillStatus.NOT_PROVEN)
    found = scrape(token)
    assert (found[key("backup_failed", **of)], found[key("drill_proven", **of)]) == (1, 0)


def test_openmetrics_for_who_wants_it(token: str) -> None:
    rows.one_of_each()
    found = scrape(token, accept="application/openmetrics-text; version=1.0.0")
    assert found[key("database_up")] == 1


def test_labels_that_need_escaping(token: str) -> None:
    profiles.learn('a "task"\\with\nall', 1, 1.0, None)
    assert scrape(token)[key("task_runs_succeeded_total", task='a "task"\\with\nall')] == 1


def test_as_many_queries_with_many_rows_as_with_few() -> None:
    rows.one_of_each()
    made()
    with CaptureQueriesContext(connection) as few:
        metrics.measure()
    for _ in range(10):
        rows.succeed(rows.start(rows.enqueue()))
        rows.enqueue()
        rows.start(rows.enqueue(queue="reports"))
        made()
    assert TaskRun.objects.count() > 30
    with CaptureQueriesContext(connection) as many:
        metrics.measure()
    assert len(few) == len(many) <= 25


def test_a_database_that_is_away_is_a_metric(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> Any:
        raise OperationalError("connection refused")

    monkeypatch.setattr(metrics, "measure", away)
    assert scrape(token) == {key("database_up"): 0}


def test_a_mistake_of_ours_is_not_blamed_on_the_database(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "measure", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scrape(token)


def test_without_prometheus_client(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = Client().get("/ht/metrics", {"token": token})
    assert answer.status_code == 501
    assert "pip install machinequeue[metrics]" in answer.content.decode()


@pytest.mark.parametrize(("quantile", "value"), [(0.5, 3), (0.95, 5), (1.0, 5), (0.2, 1)])
def test_quantiles(quantile: float, value: float) -> None:
    assert metrics._quantile([5, 1, 4, 2, 3], quantile) == value
    assert metrics._quantile([7], quantile) == 7
