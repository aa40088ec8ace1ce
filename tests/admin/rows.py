"""Rows as the real records write them: runs in every status, with their machines, attempts and output."""

import json
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import F

from machinequeue.lifecycle import AttemptStatus, CircuitKind, Failure
from machinequeue.models import Attempt, Circuit, Machine, Queue, TaskProfile, TaskRun
from machinequeue.records import circuits, claims, dispatchers, machines, profiles, queues, runs
from machinequeue.records.claims import Claim, Claimant, Report

SPEC = {"memory_mb": 2048, "cpus": 2, "cpu_kind": "performance", "regions": ["iad", "us"], "isolation": "process"}
TRACEBACK = """Traceback (most recent call last):
  File "/app/shop/tasks.py", line 41, in make_receipt
    total = sum(line.price * line.quantity for line in lines)
  File "/app/shop/tasks.py", line 41, in <genexpr>
    total = sum(line.price * line.quantity for line in lines)
TypeError: unsupported operand type(s) for *: 'NoneType' and 'int'
"""


def enqueue(task: str = "shop.tasks.make_receipt", *args: Any, queue: str = "default", **more: Any) -> TaskRun:
    """A READY run, alone in its spec key, so that a claim takes no other."""
    values = {"priority": 0, "run_after": None, "timeout": 600.0, "max_attempts": 3, "kwargs": {}, **more}
    new = runs.NewRun(
        task=task,
        args=list(args),
        backend="default",
        queue=queue,
        spec=json.dumps(SPEC),
        spec_key=secrets.token_hex(8),
        **values,
    )
    run_id, _ = runs.create(new)
    return TaskRun.objects.get(pk=run_id)


@dataclass
class Held:
    """A run as its machine holds it."""

    run: TaskRun
    machine: Machine
    claim: Claim

    def again(self) -> TaskRun:
        return TaskRun.objects.get(pk=self.run.pk)


def launch(run: TaskRun, *, booted: bool = True) -> Machine:
    """A machine for the run."""
    group = runs.Group(run.backend, run.queue, run.spec_key, 1, run.spec, run.pk)
    wish = queues.Wish(
        app="shop", image="registry/shop:v42", region="", max_of_queue=999, max_of_all=999, life_seconds=999
    )
    queues.reserve(group, wish)
    machine = Machine.objects.get(spec_key=run.spec_key)
    machines.requesting(machine)
    fly_id = secrets.token_hex(7)
    machines.created(machine, fly_id=fly_id, region="iad", state="started", request_ids=["01JD-iad", "01JE-iad"])
    if booted:
        stages = {"imports": 0.21, "set-up": 0.34}
        machines.check_in(machine.name, boot_id="b1", fly_id=fly_id, region="iad", stages=stages)
    machine.refresh_from_db()
    return machine


def start(run: TaskRun) -> Held:
    """RUNNING, on a machine of its own or on the one that it had before."""
    machine = Machine.objects.filter(spec_key=run.spec_key).first() or launch(run)
    by = Claimant(machine.pk, machine.boot_id, run.backend, run.queue, run.spec_key)
    claim = claims.claim(by, lease_seconds=600, life_seconds=9999)
    assert claim is not None
    assert claim.run_id == run.pk
    return Held(run, machine, claim)


def succeed(held: Held, value: Any = None) -> TaskRun:
    report = Report(pid=4711, exit_code=0, peak_memory_mb=148, seconds=1.84, stages={"fork": 0.004, "call": 1.84})
    assert claims.succeed(held.claim, value, report)
    return held.again()


def failure(**said: Any) -> Failure:
    """An exception in the task, as its process tells it."""
    return Failure(
        **{
            "status": AttemptStatus.FAILED,
            "error": "builtins.TypeError",
            "traceback": TRACEBACK,
            "sentence": "TypeError: unsupported operand type(s) for *: 'NoneType' and 'int'",
            "delay": 0.0,
            **said,
        }
    )


def fail(held: Held, **said: Any) -> TaskRun:
    """The attempt ends with an exception; what follows is for `lifecycle` to say."""
    report = Report(pid=4712, exit_code=1, peak_memory_mb=131, seconds=0.62, stages={"fork": 0.004, "call": 0.61})
    assert claims.fail(held.run.pk, held.claim.epoch, failure(**said), report)
    return held.again()


def lose(held: Held) -> TaskRun:
    """The machine goes, and the attempt with it."""
    return fail(
        held, status=AttemptStatus.LOST, error="machinequeue.errors.RunLost", traceback="", sentence="host lost"
    )


def starve(held: Held, peak_memory_mb: int = 2021) -> TaskRun:
    """The attempt's process is killed because the machine's memory is full."""
    failure = Failure(
        AttemptStatus.OUT_OF_MEMORY,
        error="machinequeue.errors.RunCrashed",
        sentence=f"ran out of memory at {held.machine.spec['memory_mb']} MB",
        remedy="Give the task more memory_mb.",
    )
    report = Report(pid=4713, signal=9, peak_memory_mb=peak_memory_mb, seconds=3.1, stages={"fork": 0.004})
    assert claims.fail(held.run.pk, held.claim.epoch, failure, report)
    return held.again()


def gone(held: Held, exit_code: int = 0) -> Machine:
    event = {"exit_code": exit_code, "signal": -1, "oom_killed": False, "requested_stop": False, "error": ""}
    machines.gone(held.machine, state="destroyed", exit_event=event, reason=f"exit code {exit_code}")
    held.machine.refresh_from_db()
    return held.machine


def earlier(seconds: float) -> None:
    """Everything so far happened so many seconds earlier."""
    back = timedelta(seconds=seconds)
    for model in (TaskRun, Attempt, Machine):
        moments = [field.name for field in model._meta.fields if field.get_internal_type() == "DateTimeField"]
        for name in moments:
            model.objects.filter(**{f"{name}__isnull": False}).update(**{name: F(name) - back})


def one_of_each() -> dict[str, TaskRun]:
    """A run in each status, on three queues, with two dispatchers, one of them leading."""
    made = {}
    dispatchers.seen("web-1-41-a1b2c3")
    dispatchers.seen("web-2-38-d4e5f6")
    dispatchers.lead("web-1-41-a1b2c3", 60)
    held = start(enqueue("shop.tasks.make_receipt", 42, kwargs={"language": "de", "lines": [1, 2, {"sku": "B-7"}]}))
    earlier(1.9)
    claims.add_output(held.claim, "reading the purchase\nsetting 12 lines\n", 0)
    made["successful"] = succeed(held, {"file": "receipts/P-000042.pdf", "bytes": 18_233})
    gone(held)
    earlier(4000)

    first = start(enqueue("shop.tasks.make_receipt", 43, max_attempts=2))
    claims.add_output(first.claim, "reading the purchase\n", 0)
    earlier(0.7)
    fail(first)
    earlier(6)
    second = start(first.run)
    claims.add_output(second.claim, "reading the purchase\n<b>not bold</b>\n", 12)
    earlier(0.7)
    made["failed"] = fail(second)
    earlier(300)

    lost = start(enqueue("shop.tasks.sales_report", 7, queue="reports", max_attempts=2, timeout=900.0))
    earlier(75)
    lose(lost)
    gone(lost, 137)
    earlier(8)
    Machine.objects.filter(pk=lost.machine.pk).update(spec_key="gone")
    made["running"] = start(lost.again()).again()
    earlier(31)
    made["cancelled"] = enqueue("shop.tasks.make_pictures", 5, queue="images")
    runs.cancel(made["cancelled"].pk)
    made["deferred"] = enqueue(
        "shop.tasks.make_pictures", 6, queue="images", run_after=runs.database_now() + timedelta(hours=26)
    )
    made["paused"] = enqueue("shop.tasks.make_pictures", 7, queue="images", priority=10)
    queues.reserve(runs.due_groups("default", "images")[0], no_room())
    queues.set_paused(Queue.objects.get(name="images").pk, paused=True)
    made["ready"] = enqueue("shop.reports.a_task_with_quite_a_long_name_indeed", 9, queue="reports")
    queues.reserve(runs.due_groups("default", "reports")[0], no_room())
    earlier(95)
    running = made["running"]
    progress = {"current": 1240, "total": 3000, "message": "reading purchases of 2025"}
    TaskRun.objects.filter(pk=running.pk).update(progress=progress)
    return {name: TaskRun.objects.get(pk=run.pk) for name, run in made.items()}


def no_room() -> queues.Wish:
    """Caps under which nothing more is launched."""
    return queues.Wish(app="shop", image="shop:v42", region="", max_of_queue=1, max_of_all=1, life_seconds=999)


LOG = "django.core.exceptions.ImproperlyConfigured: SECRET_KEY is missing\nfor the shop, <in> settings.py"


def hold_back(run: TaskRun, times: int = 5) -> Circuit:
    """Machines of the run's spec did not check in so many times; from five on the circuit is open."""
    image = "registry.fly.io/shop@sha256:7f3c2a91d0e55f5c0d8e8a4f8f0f1d6f2b9d0c8b7a6958473625140f1e2d3c4b"
    reason = f"machines do not boot: mq-default-1: it ended before it checked in (exit code 1); its log ends: {LOG}"
    for _ in range(times):
        circuits.failed(CircuitKind.BOOT, reason, image=image, spec_key=run.spec_key)
    return Circuit.objects.get(kind=CircuitKind.BOOT, spec_key=run.spec_key)


def refuse_token() -> Circuit:
    """Fly refuses the token, which holds every launch back."""
    circuits.failed(CircuitKind.TOKEN, "no machine could be created (Unauthorized): token validation error. Renew it.")
    return Circuit.objects.get(kind=CircuitKind.TOKEN)


def learn(task: str = "shop.tasks.make_receipt") -> TaskProfile:
    """Runs of the task succeeded, and one ran out of memory."""
    profiles.learn(task, 12, 12 * 1.84, 498)
    profiles.outgrew(task, {"memory_mb": 512}, 1024)
    return TaskProfile.objects.get(task=task)
