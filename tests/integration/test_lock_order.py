"""Dispatchers, the reconciler and runners at once: each takes its locks in one order, so that none waits for ever."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, connections

from machinequeue.lifecycle import AttemptStatus, CircuitKind, Failure
from machinequeue.models import Machine, TaskRun
from machinequeue.records import circuits, claims, dispatchers, machines, profiles, queues, runs
from machinequeue.records.claims import Report
from tests.integration.conftest import WISH, check_in
from tests.workshop import tasks

SECONDS = 3.0
CAP = 4
TIGHT = replace(WISH, max_of_queue=CAP, max_of_all=CAP)


@pytest.fixture
def rows(tables: None, woken: Any, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock():
        yield
        for model in apps.get_app_config("machinequeue").get_models():
            model._default_manager.all().delete()
        connections.close_all()


def dispatches() -> None:
    profiles.fit()
    for group in runs.due_groups():
        for machine in queues.reserve(group, TIGHT).machines:
            machines.requesting(machine)
            machines.created(machine, fly_id=machine.name, region="iad", state="started", request_ids=[])
        queues.explain((group.backend, group.queue, group.spec_key), f"looked at {time.monotonic()}")
    dispatchers.lead(threading.current_thread().name, 1.0)


def keeps() -> None:
    for group in runs.due_groups():
        queues.keep(group, TIGHT, 2, 30.0)


def trips_circuits() -> None:
    for kind in (CircuitKind.BOOT, CircuitKind.IMAGE, CircuitKind.TOKEN):
        circuits.failed(kind, "it failed", image=WISH.image)
    circuits.mend()
    circuits.launched(WISH.image, "")
    circuits.close(*CircuitKind)


def executes() -> None:
    row = Machine.objects.filter(status__in=("reserved", "created")).order_by("?").first()
    if row is None:
        return
    by = check_in(row)
    for how in (None, AttemptStatus.FAILED, AttemptStatus.OUT_OF_MEMORY, AttemptStatus.LOST):
        if (held := claims.claim(by, lease_seconds=45, life_seconds=3000)) is None:
            continue
        if how is None:
            claims.succeed(held, "done", Report(output="said"))
            profiles.learn(held.task, 1, 0.5, 100)
        else:
            claims.fail(held.run_id, held.epoch, Failure(how, sentence="it broke"), Report(output="said"))
    machines.leaves(by.machine_id, by.boot_id, 1, "done")
    machines.gone(row, state="destroyed", exit_event=None)


def enqueues() -> None:
    for priority, memory_mb in ((0, 512), (5, 1024), (-5, 2048)):
        tasks.add.using(priority=priority, memory_mb=memory_mb, max_attempts=3).enqueue(1)
    for run_id in TaskRun.objects.order_by("?").values_list("pk", flat=True)[:2]:
        runs.cancel(run_id)
        runs.retry(run_id)


@pytest.mark.usefixtures("rows")
def test_eight_who_work_at_once_never_lock_each_other_out() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    ends_at, failures, done = time.monotonic() + SECONDS, list[str](), list[str]()

    def work(step: Callable[[], None]) -> None:
        try:
            while time.monotonic() < ends_at:
                try:
                    step()
                    done.append(step.__name__)
                except AssertionError:
                    pass  # another took that machine
        except Exception as error:
            failures.append(f"{step.__name__}: {type(error).__name__}: {error}")
        finally:
            connections.close_all()

    steps = (dispatches, dispatches, keeps, trips_circuits, trips_circuits, executes, executes, enqueues)
    threads = [threading.Thread(target=work, args=(step,), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 20)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert set(done) == {step.__name__ for step in steps}
    assert TaskRun.objects.filter(status="SUCCESSFUL").exists()
    assert Machine.objects.exclude(status="gone").count() <= CAP
