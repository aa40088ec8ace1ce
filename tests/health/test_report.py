"""/ht/ for each thing that can be wrong with work and copies: made in the rows as their writers leave them."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from machinequeue import conf
from machinequeue.lifecycle import CircuitKind, DrillStatus
from machinequeue.models import ApiAnswer, Attempt, Backup, Dispatcher, Machine, Queue, RestoreDrill, Schedule, TaskRun
from machinequeue.records import api, backups, circuits, dispatchers, queues, schedules
from tests.admin import rows
from tests.crash import servers

pytestmark = pytest.mark.django_db(transaction=True)

Ask = Callable[[], tuple[int, dict[str, Any], dict[str, dict[str, Any]]]]


@pytest.fixture(autouse=True)
def _a_dispatcher_is_there(db: Any) -> None:
    dispatchers.seen("web-1-41-a1b2c3")


def ago(row: Any, seconds: float, *names: str) -> None:
    """Move moments of a row into the past."""
    moved = {name: F(name) - timedelta(seconds=seconds) for name in names}
    type(row).objects.filter(pk=row.pk).update(**moved)


def test_all_is_well(report: Ask) -> None:
    status, whole, checks = report()
    assert (status, whole["status"]) == (200, "ok")
    assert list(checks) == [
        "database",
        "wakeups",
        "dispatcher",
        "backlog",
        "schedules",
        "circuits",
        "api",
        "machines",
        "backup",
        "drill",
    ]
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert checks["database"]["sentence"] == "The database “default” answers."
    assert checks["dispatcher"]["figures"]["alive"] == 1
    assert all(check["seconds"] >= 0 and check["remedy"] == "" for check in checks.values())


# Redis ----------------------------------------------------------------------------------------------------------------


def test_a_redis_that_is_stopped_degrades(report: Ask, settings: Any) -> None:
    with servers.Redis() as redis:
        secret = redis.url.replace("redis://", "redis://:pass-of-redis@")
        settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "REDIS_URL": redis.url}
        assert report()[2]["wakeups"]["sentence"] == "Redis takes wake-ups."
        redis.refuse_writes()
        status, whole, checks = report()
        assert (status, whole["status"], checks["wakeups"]["status"]) == (200, "degraded", "warning")
        assert "OutOfMemory" in checks["wakeups"]["sentence"]
        redis.end()
        settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "REDIS_URL": secret}
        status, whole, checks = report()
    assert (status, whole["status"], checks["wakeups"]["status"]) == (200, "degraded", "warning")
    assert checks["wakeups"]["sentence"].startswith("Wake-ups cannot be carried: ConnectionError")
    assert checks["wakeups"]["sentence"].endswith("Runs start up to a second later.")
    assert checks["wakeups"]["remedy"].startswith("Start Redis")
    assert "pass-of-redis" not in str(whole)


# Dispatchers and runs -------------------------------------------------------------------------------------------------


def test_no_dispatcher(report: Ask) -> None:
    dispatchers.leave("web-1-41-a1b2c3")
    status, whole, checks = report()
    assert (status, whole["status"], checks["dispatcher"]["status"]) == (503, "failure", "failure")
    assert checks["dispatcher"]["sentence"] == "No dispatcher is running, so no machine is launched."
    assert "mq_dispatcher" in checks["dispatcher"]["remedy"]


def test_a_dispatcher_that_fell_silent(report: Ask) -> None:
    ago(Dispatcher.objects.get(), 600, "seen_at")
    status, _, checks = report()
    assert (status, checks["dispatcher"]["status"]) == (503, "failure")
    assert checks["dispatcher"]["sentence"] == (
        "The last dispatcher was seen 10 min ago; since then no machine was launched."
    )
    assert checks["dispatcher"]["figures"]["alive"] == 0


def test_a_due_run_grows_old(report: Ask) -> None:
    run = rows.enqueue(queue="reports")
    rows.enqueue()
    queues.explain(("default", "reports", run.spec_key), "at 2 of 2 machines of queue reports")
    assert report()[2]["backlog"]["status"] == "ok"
    ago(run, 900, "run_after")
    status, whole, checks = report()
    assert (status, whole["status"], checks["backlog"]["status"]) == (200, "degraded", "warning")
    assert checks["backlog"]["sentence"] == "2 runs are due; the oldest, of queue “reports”, for 15 min."
    assert checks["backlog"]["remedy"] == "It waits: at 2 of 2 machines of queue reports"
    ago(run, 3600, "run_after")
    status, whole, checks = report()
    assert (status, whole["status"], checks["backlog"]["status"]) == (503, "failure", "failure")


def test_a_paused_queue_and_a_later_run_are_no_backlog(report: Ask) -> None:
    run = rows.enqueue()
    ago(run, 9000, "run_after")
    rows.enqueue(run_after=run.enqueued_at + timedelta(days=1))
    queues.explain(("default", "default", run.spec_key), "because")
    queues.set_paused(Queue.objects.get(name="default").pk, paused=True)
    assert report()[2]["backlog"]["sentence"] == "No run waits."


def test_circuits(report: Ask) -> None:
    rows.hold_back(rows.enqueue(), times=4)
    assert report()[2]["circuits"]["status"] == "ok"
    rows.hold_back(rows.enqueue())
    status, whole, checks = report()
    assert (status, whole["status"], checks["circuits"]["status"]) == (200, "degraded", "warning")
    assert checks["circuits"]["sentence"] == "1 circuit is open and holds launches back: Machines do not check in."
    assert "SECRET_KEY is missing" in checks["circuits"]["remedy"]
    rows.refuse_token()
    status, whole, checks = report()
    assert (status, whole["status"], checks["circuits"]["status"]) == (503, "failure", "failure")
    assert checks["circuits"]["figures"]["kind"] == "token"
    assert checks["circuits"]["figures"]["open"] == 2
    circuits.close(*CircuitKind)
    assert report()[1]["status"] == "ok"


# Machines and their API -----------------------------------------------------------------------------------------------


def test_machines_that_are_stuck(report: Ask) -> None:
    late = rows.launch(rows.enqueue())
    assert report()[2]["machines"]["status"] == "ok"
    ago(late, 9999, "deadline_at")
    _, whole, checks = report()
    assert (whole["status"], checks["machines"]["status"]) == ("degraded", "warning")
    found = checks["machines"]["figures"]
    assert checks["machines"]["sentence"].startswith(f"1 machine is stuck: {late.name} is ")
    assert (found["machine"], found["why"]) == (late.name, "late")
    assert 8000 < found["since_seconds"] < 9999
    Machine.objects.all().delete()

    unborn = rows.launch(rows.enqueue(), booted=False)
    ago(unborn, 9999, "requested_at")
    figures = report()[2]["machines"]["figures"]
    assert (figures["machine"], figures["why"], figures["stuck"]) == (unborn.name, "unborn", 1)
    Machine.objects.all().delete()
    Attempt.objects.all().delete()

    silent = rows.start(rows.enqueue())
    ago(silent.run, 9999, "lease_expires_at")
    figures = report()[2]["machines"]["figures"]
    assert (figures["machine"], figures["why"], figures["stuck"]) == (silent.machine.name, "silent", 1)
    rows.gone(silent)
    TaskRun.objects.all().delete()
    assert report()[2]["machines"]["status"] == "ok"


def test_the_machines_api(report: Ask) -> None:
    assert report()[2]["api"]["sentence"] == "No dispatcher has asked the Machines API yet."
    app = conf.settings().app
    api.failed(app, "Unreachable: connection refused")
    _, whole, checks = report()
    assert (whole["status"], checks["api"]["status"]) == ("degraded", "warning")
    assert checks["api"]["sentence"] == "The Machines API has never answered: Unreachable: connection refused"
    api.answered(app)
    assert report()[2]["api"]["status"] == "ok"
    api.failed(app, "ServerError: bad gateway")
    assert report()[2]["api"]["status"] == "ok"
    ago(ApiAnswer.objects.get(), 400, "answered_at", "failed_at")
    _, whole, checks = report()
    assert checks["api"]["status"] == "warning"
    assert checks["api"]["sentence"] == "The Machines API last answered 7 min ago: ServerError: bad gateway"
    api.answered(app)
    assert ApiAnswer.objects.get().error == ""
    assert report()[1]["status"] == "ok"


# Backups --------------------------------------------------------------------------------------------------------------


def made(size: int = 42_000_000, database: str = "default") -> Backup:
    backup = backups.start(database=database, kind="database", name="default-web-1.psql.bin", run_id=None)
    assert backups.succeed(backup.pk, seconds=2.0, size_bytes=size, sha256="0" * 64, counts={"auth_user": 3})
    return backups.get(backup.pk)  # type: ignore[return-value]


def drilled(backup: Backup, status: DrillStatus, reason: str = "") -> RestoreDrill:
    drill = backups.start_drill(backup.pk, None)
    assert backups.finish_drill(drill.pk, status, reason, method="scratch server", seconds=4.0)
    return RestoreDrill.objects.get(pk=drill.pk)


def test_backups_that_nobody_makes_are_no_trouble(report: Ask) -> None:
    checks = report()[2]
    for name in ("backup", "drill"):
        assert checks[name]["sentence"].startswith("No backups are made here")


def test_a_backup_that_is_missing(report: Ask) -> None:
    failed = backups.start(database="default", kind="database", name="x", run_id=None)
    status, _, checks = report()
    assert (status, checks["backup"]["status"]) == (503, "failure")
    assert checks["backup"]["sentence"] == "There is no backup."
    backups.fail(failed.pk, "pg_dump: server version 17, pg_dump version 15")
    checks = report()[2]
    assert checks["backup"]["sentence"] == (
        "There is no backup, and the last try failed: pg_dump: server version 17, pg_dump version 15"
    )
    assert "mq_backup" in checks["backup"]["remedy"]


def test_a_backup_grows_old_fails_and_shrinks(report: Ask) -> None:
    first = made()
    drilled(first, DrillStatus.PROVEN)
    _, whole, checks = report()
    assert whole["status"] == "ok"
    sentence = re.sub(r"\d+ s old", "N s old", checks["backup"]["sentence"])
    assert sentence == "The newest backup is N s old and has 42 MB."
    ago(first, 30 * 3600, "started_at", "finished_at")
    status, _, checks = report()
    assert (status, checks["backup"]["status"]) == (503, "failure")
    assert checks["backup"]["sentence"] == "The newest backup is 30 h old."
    small = made(size=4_000_000)
    status, whole, checks = report()
    assert (status, whole["status"], checks["backup"]["status"]) == (200, "degraded", "warning")
    assert checks["backup"]["sentence"] == "The newest backup has only 4 MB; the one before it had 42 MB."
    failed = backups.start(database="default", kind="database", name="y", run_id=None)
    backups.fail(failed.pk, "bucket not found")
    status, whole, checks = report()
    assert (status, checks["backup"]["status"]) == (503, "failure")
    assert checks["backup"]["sentence"].startswith("The last backup failed: bucket not found. The newest good one is ")
    assert small.size_bytes == 4_000_000


def test_drills(report: Ask) -> None:
    backup = made()
    _, whole, checks = report()
    assert (whole["status"], checks["drill"]["sentence"]) == ("degraded", "No backup was ever proven to restore.")
    old = drilled(backup, DrillStatus.PROVEN)
    assert report()[1]["status"] == "ok"
    ago(old, 20 * 86_400, "finished_at")
    _, whole, checks = report()
    assert (whole["status"], checks["drill"]["sentence"]) == ("degraded", "The last restore drill was 20 d ago.")
    drilled(backup, DrillStatus.NOT_PROVEN, "no server to restore into")
    _, whole, checks = report()
    assert (whole["status"], checks["drill"]["status"]) == ("degraded", "warning")
    assert checks["drill"]["sentence"] == "The last restore drill proved nothing: no server to restore into"
    drilled(backup, DrillStatus.FAILED, "table auth_user has 2 rows, 3 were dumped")
    status, whole, checks = report()
    assert (status, whole["status"], checks["drill"]["status"]) == (503, "failure", "failure")
    assert checks["drill"]["sentence"] == ("The last restore drill failed: table auth_user has 2 rows, 3 were dumped")
    assert checks["drill"]["figures"]["backup"] == "default-web-1.psql.bin"


# Schedules ------------------------------------------------------------------------------------------------------------


def test_schedules_that_are_late_and_those_that_cannot_be_kept(report: Ask) -> None:
    schedule = Schedule.objects.create(name="nightly", task="shop.tasks.nightly", every_seconds=60, next_at=Now())
    assert report()[2]["schedules"]["sentence"] == "Every schedule is on time."
    ago(schedule, 180, "next_at")
    _, whole, checks = report()
    assert (whole["status"], checks["schedules"]["status"]) == ("degraded", "warning")
    assert checks["schedules"]["sentence"] == "1 schedule is late: nightly, by 3 min."
    ago(schedule, 820, "next_at")
    status, _, checks = report()
    assert (status, checks["schedules"]["status"]) == (503, "failure")
    assert checks["schedules"]["figures"]["lateness_seconds"] >= 1000
    schedules.set_paused(schedule.pk, paused=True)
    assert report()[1]["status"] == "ok"
    schedules.set_paused(schedule.pk, paused=False)
    Schedule.objects.update(next_at=Now(), last_error="shop.tasks.nightly cannot be imported")
    status, _, checks = report()
    assert (status, checks["schedules"]["status"]) == (503, "failure")
    assert checks["schedules"]["sentence"] == "1 schedule cannot be enqueued: nightly."
    assert checks["schedules"]["remedy"].endswith("shop.tasks.nightly cannot be imported")
