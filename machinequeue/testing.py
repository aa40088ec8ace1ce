"""What users' tests import: backends without machines, and a way to execute enqueued runs in the test's own process.

`ImmediateBackend` and `DummyBackend` are Django's, for tasks made with `@machine_task`. `run_tasks()` executes the
READY runs of the real backend's rows, one after the other, with the JSON round trip that a machine would make.
The fixture `machines_emulator` is in `machinequeue.machines.pytest_plugin`, which needs no Django.
"""

import secrets
from functools import partial
from typing import Any

from django.utils.module_loading import import_string

from machinequeue.backend import MachineTask
from machinequeue.compat import task_backends
from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.payload import normalize, scrub
from machinequeue.records import claims, machines, queues, runs
from machinequeue.records.claims import Claim, Claimant, Report

try:
    from django.tasks.backends.dummy import DummyBackend as CoreDummyBackend
    from django.tasks.backends.immediate import ImmediateBackend as CoreImmediateBackend
except ImportError:  # Django 5.2
    from django_tasks.backends.dummy import DummyBackend as CoreDummyBackend  # type: ignore[no-redef]
    from django_tasks.backends.immediate import ImmediateBackend as CoreImmediateBackend  # type: ignore[no-redef]

__all__ = ["DummyBackend", "ImmediateBackend", "run_tasks"]


class ImmediateBackend(CoreImmediateBackend):
    """Executes a task where it is enqueued. Takes the TASKS entry of the real backend: only BACKEND differs."""

    task_class = MachineTask
    supports_priority = True


class DummyBackend(CoreDummyBackend):
    """Records what was enqueued in `default_task_backend.results` and executes nothing."""

    task_class = MachineTask


def run_tasks(most: int = 1000) -> int:
    """Execute the due runs, and those that they enqueue, in this process; how many attempts that took.

    Works inside a test's transaction. Exceptions of tasks end in their results, as on a machine.
    """
    done = 0
    while done < most and (groups := runs.due_groups()):
        for group in groups:
            done += _drain(group, most - done)
    return done


def _drain(group: runs.Group, most: int) -> int:
    wish = queues.Wish(app="test", image="test", region="", max_of_queue=10_000, max_of_all=10_000, life_seconds=1e6)
    machine = queues.reserve_one(group, wish)
    boot_id = secrets.token_hex(16)
    machines.check_in(machine.name, boot_id=boot_id, fly_id="", region="test", stages={})
    by = Claimant(machine.pk, boot_id, group.backend, group.queue, group.spec_key)
    done = 0
    while done < most and (claim := claims.claim(by, lease_seconds=3600, life_seconds=1e6)):
        _execute(claim, machine.name)
        done += 1
    machines.gone(machine, state="destroyed", exit_event=None)
    return done


def _hear(claim: Claim, message: dict[str, Any]) -> None:
    if "checkpoint" in message:
        claims.checkpoint(claim, message["checkpoint"])


def _execute(claim: Claim, worker_id: str) -> None:
    backend: Any = task_backends[claim.backend]
    try:
        task = import_string(claim.task)
        context = backend.context_of(claim, worker_id, partial(_hear, claim))
        args = [context, *claim.args] if task.takes_context else claim.args
        value = normalize(task.call(*args, **claim.kwargs), "the return value")
    except (Exception, SystemExit) as error:
        kind = type(error)
        failure = Failure(
            AttemptStatus.FAILED,
            error=f"{kind.__module__}.{kind.__qualname__}",
            traceback=scrub(repr(error)),
            sentence=f"{kind.__name__}: {error}",
            delay=0.0,
        )
        claims.fail(claim.run_id, claim.epoch, failure, Report())
    else:
        claims.succeed(claim, value, Report())
