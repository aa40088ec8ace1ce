"""Retention: what has ended goes when it is old enough, a little at a time; nothing else ever does."""

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.db.models.signals import pre_delete

from machinequeue.lifecycle import CircuitKind
from machinequeue.models import (
    Attempt,
    Circuit,
    Dispatcher,
    Machine,
    OutputChunk,
    OutputPiece,
    Schedule,
    ScheduleTick,
    TaskRun,
)
from machinequeue.records import claims, machines, pruning, runs, streams
from machinequeue.records.claims import Report
from machinequeue.records.pruning import Ages, Pruned, Pruner
from machinequeue.testing import run_tasks
from tests.integration.conftest import check_in, claim, claimed, reserved
from tests.waiting import until
from tests.workshop import tasks
from tests.world import World

pytestmark = pytest.mark.usefixtures("woken")

DAY = timedelta(days=1)
USUAL = Ages(successful=14 * DAY, failed=90 * DAY, machines=30 * DAY)


def sweep(ages: Ages = USUAL) -> Pruned:
    """One whole sweep."""
    pruner, pruned = Pruner(ages), Pruned()
    while not pruner.done:
        pruned += pruner.step()
    return pruned


def older(run_id: Any, age: timedelta) -> uuid.UUID:
    """The run as if all of it had happened so long before: its id says when it was enqueued."""
    young = uuid.UUID(str(run_id))
    old = uuid.UUID(int=young.int - (int(age.total_seconds() * 1000) << 80))
    run = TaskRun.objects.get(pk=young)
    attempts = list(Attempt.objects.filter(run=run).values_list("pk", flat=True))
    launched = list(Machine.objects.filter(launched_for=run).values_list("pk", flat=True))
    run.pk = old
    run.enqueued_at -= age  # type: ignore[operator]
    run.finished_at = run.finished_at and run.finished_at - age
    run.save(force_insert=True)
    Attempt.objects.filter(pk__in=attempts).update(run=run)
    Machine.objects.filter(pk__in=launched).update(launched_for=run)
    TaskRun.objects.filter(pk=young).delete()
    return old


def gone(age: timedelta) -> None:
    """All machines have been gone for so long."""
    Machine.objects.update(status="gone", gone_at=Now() - age, reserved_at=F("reserved_at") - age)


def ended(status: str) -> uuid.UUID:
    """A run that has ended so."""
    result = tasks.add.enqueue(1)
    if status == "CANCELLED":
        result.cancel()
    elif status == "EXPIRED":
        TaskRun.objects.filter(pk=result.id).update(expires_at=Now() - DAY)
        runs.expire()
    else:
        held = claimed(result)
        if status == "SUCCESSFUL":
            claims.succeed(held, 1, Report(output="said"))
        else:
            from machinequeue.lifecycle import AttemptStatus, Failure

            claims.fail(held.run_id, held.epoch, Failure(AttemptStatus.FAILED, retry=False), Report(output="said"))
    assert TaskRun.objects.get(pk=result.id).status == status
    return uuid.UUID(result.id)


def there(run_id: uuid.UUID) -> bool:
    return TaskRun.objects.filter(pk=run_id).exists()


# What goes, and what stays ------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("status", "kept", "pruned"),
    [("SUCCESSFUL", 13, 15), ("FAILED", 89, 91), ("CANCELLED", 89, 91), ("EXPIRED", 89, 91)],
)
def test_runs_go_when_they_are_older_than_their_kind_is_kept(status: str, kept: int, pruned: int) -> None:
    run_ids = [ended(status), ended(status)]
    gone(timedelta(0))
    young, old = older(run_ids[0], kept * DAY), older(run_ids[1], pruned * DAY)
    assert sweep().runs == 1
    assert (there(young), there(old)) == (True, False)


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["SUCCESSFUL", "FAILED"])
def test_a_run_that_waited_for_long_is_as_old_as_its_end(status: str) -> None:
    old = older(ended(status), 400 * DAY)
    gone(timedelta(0))
    TaskRun.objects.filter(pk=old).update(finished_at=Now())
    assert sweep().runs == 0
    assert there(old)


@pytest.mark.django_db
def test_a_run_takes_its_attempts_and_output_along_and_leaves_its_tick() -> None:
    result = tasks.add.enqueue(1)
    held = claimed(result)
    streams.add(held.run_id, held.epoch, [streams.Piece("stdout", 0, b"\x00\xff")])
    claims.succeed(held, 1, Report(output="said"))
    gone(timedelta(0))
    old = older(result.id, 15 * DAY)
    schedule = Schedule.objects.create(name="nightly", task="add", every_seconds=60)
    ScheduleTick.objects.create(schedule=schedule, due_at=Now(), run_id=old)
    assert (OutputChunk.objects.count(), OutputPiece.objects.count()) == (1, 1)
    assert sweep() == Pruned(runs=1)
    assert not Attempt.objects.exists()
    assert not OutputChunk.objects.exists()
    assert not OutputPiece.objects.exists()
    assert ScheduleTick.objects.get().run_id is None
    assert Machine.objects.get().launched_for is None


@pytest.mark.django_db
def test_no_output_is_loaded_for_a_receiver_of_all_deletes() -> None:
    """It may be a gigabyte."""
    result = tasks.add.enqueue(1)
    held = claimed(result)
    streams.add(held.run_id, held.epoch, [streams.Piece("stdout", 0, b"\x00\xff")])
    claims.succeed(held, 1, Report(output="said"))
    gone(timedelta(0))
    older(result.id, 15 * DAY)
    told = []

    def receiver(sender: Any, **_: Any) -> None:
        told.append(sender)

    pre_delete.connect(receiver)
    try:
        assert sweep() == Pruned(runs=1)
    finally:
        pre_delete.disconnect(receiver)
    assert {TaskRun, Attempt} <= set(told)
    assert not {OutputChunk, OutputPiece} & set(told)
    assert not OutputChunk.objects.exists()
    assert not OutputPiece.objects.exists()


@pytest.mark.django_db
def test_what_lives_stays_however_old_it_is() -> None:
    waits = older(tasks.add.enqueue(1).id, 400 * DAY)
    runs_ = tasks.add.using(priority=5).enqueue(2)
    held = claimed(runs_)
    runs_now = older(held.run_id, 400 * DAY)
    Machine.objects.update(reserved_at=Now() - 400 * DAY)
    assert sweep(Ages.all_of(timedelta(0))) == Pruned()
    assert there(waits)
    assert there(runs_now)
    assert Machine.objects.count() == 1


@pytest.mark.django_db
def test_a_run_stays_while_a_machine_exists_that_was_launched_for_it() -> None:
    result = tasks.add.enqueue(1)
    machine = reserved(result)
    result.cancel()
    old = older(result.id, 400 * DAY)
    assert sweep().runs == 0
    assert there(old)
    machines.gone(Machine.objects.get(pk=machine.pk), state="destroyed", exit_event=None)
    assert sweep().runs == 1
    assert not there(old)


@pytest.mark.django_db
def test_a_machine_goes_after_the_last_run_that_refers_to_it() -> None:
    run_id = ended("FAILED")
    gone(31 * DAY)
    failed = older(run_id, 31 * DAY)
    assert sweep() == Pruned(), "the run is kept for 90 days"
    TaskRun.objects.filter(pk=failed).delete()
    assert sweep() == Pruned(machines=1)


@pytest.mark.django_db
def test_nothing_goes_where_everything_is_kept(settings: Any) -> None:
    settings.MACHINEQUEUE = {
        **settings.MACHINEQUEUE,
        "KEEP_SUCCESSFUL_DAYS": 0,
        "KEEP_FAILED_DAYS": 0,
        "KEEP_MACHINES_DAYS": 0,
    }
    run_ids = [ended("SUCCESSFUL"), ended("FAILED")]
    gone(999 * DAY)
    kept = [older(run_id, 999 * DAY) for run_id in run_ids]
    assert sweep(Ages.of_settings()) == Pruned()
    assert all(map(there, kept))


@pytest.mark.django_db
def test_each_kind_is_kept_for_as_long_as_the_settings_say(settings: Any) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "KEEP_SUCCESSFUL_DAYS": 0, "KEEP_FAILED_DAYS": 0.5}
    run_ids = [ended("SUCCESSFUL"), ended("FAILED")]
    gone(timedelta(0))
    succeeded, failed = (older(run_id, DAY) for run_id in run_ids)
    assert sweep(Ages.of_settings()).runs == 1
    assert (there(succeeded), there(failed)) == (True, False)


@pytest.mark.django_db
def test_silent_dispatchers_and_forgotten_failures_go() -> None:
    Dispatcher.objects.create(name="silent", seen_at=Now() - 2 * DAY)
    Dispatcher.objects.create(name="here")
    for key, failed, opened in (("old", 40 * DAY, None), ("young", DAY, None), ("open", 40 * DAY, Now() - 40 * DAY)):
        row = Circuit.objects.create(kind=CircuitKind.CAPACITY, spec_key=key, failures=1, opened_at=opened)
        Circuit.objects.filter(pk=row.pk).update(failed_at=Now() - failed, next_at=Now() - failed)
    sweep()
    assert [*Dispatcher.objects.values_list("name", flat=True)] == ["here"]
    assert {*Circuit.objects.values_list("spec_key", flat=True)} == {"young", "open"}


# A little at a time -------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_step_looks_at_a_batch_and_the_next_goes_on_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH", 3)
    kept = [older(ended("FAILED"), 20 * DAY) for _ in range(4)]
    old = [older(ended("CANCELLED"), 100 * DAY) for _ in range(3)]
    late = [older(ended("SUCCESSFUL"), 19 * DAY) for _ in range(2)]
    gone(timedelta(0))
    pruner = Pruner(USUAL)
    steps = []
    while not pruner.done:
        steps.append(pruner.step().runs)
    assert max(steps) <= 3
    assert sum(steps) == 5
    assert all(map(there, kept))
    assert not any(map(there, [*old, *late]))


@pytest.mark.django_db
def test_after_a_sweep_there_is_a_rest_without_a_question(django_assert_num_queries: Any) -> None:
    pruner = Pruner(USUAL)
    while not pruner.done:
        pruner.step()
    with django_assert_num_queries(0):
        assert pruner.step() == Pruned()


@pytest.mark.django_db
def test_a_step_asks_as_much_whatever_there_is(django_assert_max_num_queries: Any) -> None:
    for _ in range(40):
        older(ended("CANCELLED"), 100 * DAY)
    with django_assert_max_num_queries(20):
        assert Pruner(USUAL).step().runs == 40


# With others --------------------------------------------------------------------------------------------------------


@pytest.fixture
def emptied(transactional_db: None) -> Iterator[None]:
    yield
    connections.close_all()


@pytest.mark.usefixtures("emptied")
def test_a_run_that_somebody_retries_at_this_moment_stays() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("on SQLite one writer waits for the other: nobody holds a row")
    old = older(ended("CANCELLED"), 100 * DAY)
    held, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def retry() -> None:
        with transaction.atomic():
            assert runs.retry(old)
            held.set()
            go_on.wait(60)
        connections.close_all()
        done.set()

    thread = threading.Thread(target=retry)
    thread.start()
    try:
        assert held.wait(60)
        assert sweep() == Pruned(), "it waits for nobody"
    finally:
        go_on.set()
        thread.join(60)
    assert done.is_set()
    assert sweep() == Pruned()
    assert TaskRun.objects.get(pk=old).status == "READY"


@pytest.mark.usefixtures("emptied")
def test_pruning_while_others_enqueue_claim_and_finish_loses_nothing() -> None:
    """Everything that has finished goes at once, while machines work; each run still executes exactly once."""
    workers, each = 3, 25
    at_once = Ages(successful=timedelta(microseconds=1), failed=timedelta(microseconds=1), machines=None)
    succeeded: Counter[uuid.UUID] = Counter()
    given: list[uuid.UUID] = []
    problems: list[BaseException] = []
    over, lock = threading.Event(), threading.Lock()
    machine = reserved(tasks.add.enqueue(0))
    first = TaskRun.objects.get()

    def work(by: Any) -> None:
        try:
            for number in range(each):
                run_id = uuid.UUID(tasks.add.enqueue(number).id)
                with lock:
                    given.append(run_id)
                if (held := claim(by)) is not None and claims.succeed(held, None, Report(output="said")):
                    with lock:
                        succeeded[held.run_id] += 1
        except BaseException as error:
            problems.append(error)
        finally:
            connections.close_all()

    def prune() -> None:
        try:
            while not over.is_set():
                sweep(at_once)
        except BaseException as error:
            problems.append(error)
        finally:
            connections.close_all()

    others = [reserved(tasks.add.using(memory_mb=size).enqueue(0)) for size in (1024, 2048)]
    TaskRun.objects.filter(pk__gt=first.pk).delete()
    lane = {"spec_key": machine.spec_key, "spec": machine.spec}
    Machine.objects.filter(pk__in=[each.pk for each in others]).update(**lane)
    claimants = [check_in(Machine.objects.get(pk=each.pk)) for each in (machine, *others)]
    threads = [threading.Thread(target=work, args=(by,)) for by in claimants]
    pruning_ = threading.Thread(target=prune)
    for thread in (*threads, pruning_):
        thread.start()
    for thread in threads:
        thread.join(90)
    over.set()
    pruning_.join(90)
    assert problems == []
    left = {*TaskRun.objects.filter(status="READY").values_list("pk", flat=True)}
    assert not TaskRun.objects.filter(status="RUNNING").exists()
    assert len(given) == workers * each
    assert {*given, first.pk} == {*succeeded} | left, "each run has succeeded or still waits"
    assert not {*succeeded} & left
    assert {*succeeded.values()} <= {1}
    assert len(succeeded) > 0
    Machine.objects.update(launched_for=None)
    sweep(at_once)
    assert {*TaskRun.objects.values_list("pk", flat=True)} == left, "all that finished has gone"


def test_the_dispatcher_that_leads_prunes(empty_shop: World) -> None:
    old = older(ended("CANCELLED"), 100 * DAY)
    young = ended("CANCELLED")
    empty_shop.dispatcher()
    until(lambda: not there(old), 60, empty_shop.said)
    assert there(young)
    until(lambda: "rows.pruned runs=1" in empty_shop.processes[0].said, 60, empty_shop.said)


# mq_prune -----------------------------------------------------------------------------------------------------------


def said(*words: str) -> str:
    out = StringIO()
    call_command("mq_prune", *words, stdout=out)
    return out.getvalue()


@pytest.mark.django_db
def test_prune_counts_and_deletes_what_the_settings_say() -> None:
    run_ids = [ended("SUCCESSFUL"), ended("SUCCESSFUL")]
    gone(31 * DAY)
    old, young = older(run_ids[0], 31 * DAY), older(run_ids[1], DAY)
    assert said("--dry-run") == "Would delete 1 run and 1 machine.\n"
    assert there(old)
    assert said() == "Deleted 1 run and 1 machine.\n"
    assert (there(old), there(young)) == (False, True)
    assert said() == "Deleted 0 runs and 0 machines.\n"


@pytest.mark.django_db
def test_prune_deletes_what_is_older_than_it_is_told() -> None:
    run_ids = [ended("SUCCESSFUL"), ended("FAILED"), ended("SUCCESSFUL")]
    waits = older(tasks.add.enqueue(1).id, 5 * DAY)
    gone(timedelta(0))
    first, second, third = (older(run_id, age * DAY) for run_id, age in zip(run_ids, (3, 3, 1), strict=True))
    assert said("--older-than", "2", "--dry-run") == "Would delete 2 runs and 0 machines.\n"
    assert said("--older-than", "2") == "Deleted 2 runs and 0 machines.\n"
    assert [there(each) for each in (first, second, third, waits)] == [False, False, True, True]
    assert said("--older-than", "0") == "Deleted 1 run and 3 machines.\n"
    assert there(waits)
    assert run_tasks() == 1


@pytest.mark.django_db
def test_prune_refuses_what_makes_no_sense() -> None:
    with pytest.raises(CommandError, match="must be 0 or more days, not -1"):
        said("--older-than=-1")
