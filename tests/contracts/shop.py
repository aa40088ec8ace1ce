"""A shop whose every step is made by hand: the real dispatcher, reconciler and rows, over the emulated Machines API.

Machines are real processes that sleep until the API or the shop ends them. Runners are calls: check in, claim, execute
in this process, record the outcome. So a test can stop anywhere between two steps and let another go on.
"""

import contextlib
import datetime
import secrets
import uuid
from typing import Any

from django.db.models import F
from django.db.models.functions import Now

from machinequeue import conf, testing
from machinequeue.dispatch.launch import Launcher
from machinequeue.dispatch.service import Dispatcher
from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.errors import NotFound
from machinequeue.models import Dispatcher as DispatcherRow
from machinequeue.models import Machine, Queue, TaskRun
from machinequeue.reconciler import Reconciler
from machinequeue.records import claims, dispatchers, machines, profiles, queues, runs
from machinequeue.records.claims import Claim, Claimant, Report
from tests.contracts.errands import PROVIDER, errand
from tests.waiting import until

QUEUE = ("default", "errands")
LANE = (*QUEUE, conf.spec_key(conf.spec_of(conf.policy(*QUEUE), "")))
"""The queue, and the machine that its runs ask for."""
URGENT = 100
LONG_AGO = datetime.timedelta(days=400)
"""Longer than anything is kept."""
AGE_OF_TIME = datetime.timedelta(minutes=5)
"""Longer than whatever the dispatcher and the reconciler wait for."""


def dispatcher(launcher: Launcher) -> Dispatcher:
    """A dispatcher that has just started; its reconciler is called by name."""
    dispatchers.seen("the shop")
    return Dispatcher(launcher, lambda launcher: None, name="the shop")


class Shop:
    """One queue, its dispatcher, and the machines that this dispatcher launches."""

    client: MachinesClient

    def open(self, client: MachinesClient) -> None:
        self.client = client
        self.launcher = Launcher(client)
        self.claimed: list[uuid.UUID] = []
        """Runs in the order in which machines claimed them."""
        self.held: dict[tuple[uuid.UUID, int], Claim] = {}
        self.woken: list[tuple[str, str]] = []
        """Wake-ups on their way to a dispatcher."""
        self.spares: list[Claimant] = []
        """Machines that are up and have claimed nothing."""
        self.arranged: list[Machine] = []
        """Machines that only arranged what a test begins with."""
        PROVIDER.asked.clear()
        PROVIDER.away = False

    def close(self) -> None:
        for machine in self.client.list():
            self.end(machine.id)

    # Users ----------------------------------------------------------------------------------------------------------

    def enqueue(self, **options: Any) -> uuid.UUID:
        return uuid.UUID(errand.using(**options).enqueue().id)

    def owed(self, age: datetime.timedelta = datetime.timedelta(0), **changes: Any) -> TaskRun:
        """A due run that was enqueued so long ago: its id says when, and nobody was woken."""
        young = self.enqueue()
        old = uuid.UUID(int=young.int - (int(age.total_seconds() * 1000) << 80))
        times = {name: F(name) - age for name in ("enqueued_at", "run_after")}
        TaskRun.objects.filter(pk=young).update(**{"id": old, **times, **changes})
        self.woken.clear()
        return TaskRun.objects.get(pk=old)

    def deferred(self, age: datetime.timedelta) -> TaskRun:
        """A run whose time came so long ago."""
        run = self.owed(age)
        TaskRun.objects.filter(pk=run.pk).update(enqueued_at=F("run_after") - datetime.timedelta(days=1))
        return run

    def lost_once(self, age: datetime.timedelta) -> TaskRun:
        """A run whose first attempt was lost."""
        run = self.owed(age, priority=URGENT)
        held = self.claim(self.spare())
        claims.fail(held.run_id, held.epoch, Failure(AttemptStatus.LOST), Report())
        TaskRun.objects.filter(pk=run.pk).update(priority=0, run_after=Now() - age)
        self.claimed.clear()
        self.tidy()
        return TaskRun.objects.get(pk=run.pk)

    def finished(self, age: datetime.timedelta) -> list[TaskRun]:
        """A run in each status that it cannot leave by itself, all so long ago."""
        before = list(self.claimed)
        succeeded, failed = (self.owed(age, priority=URGENT) for _ in range(2))
        for _run in (succeeded, failed):
            held = self.claim(self.spare())
            if held.run_id == succeeded.pk:
                claims.succeed(held, "done", Report())
            else:
                claims.fail(held.run_id, held.epoch, Failure(AttemptStatus.FAILED, retry=False), Report())
        cancelled = self.owed(age)
        runs.cancel(cancelled.pk)
        expired = self.owed(age, expires_at=Now() - age)
        runs.expire()
        self.claimed[:] = before
        self.tidy()
        rows = [succeeded, failed, cancelled, expired]
        for row in rows:
            row.refresh_from_db()
        return rows

    # Machines -------------------------------------------------------------------------------------------------------

    def spare(self) -> Claimant:
        """A machine of the queue that is up, whatever the demand says."""
        profiles.fit()
        youngest = TaskRun.objects.latest("enqueued_at")
        group = runs.Group(*QUEUE, youngest.spec_key, 1, youngest.spec, None)
        wish = queues.Wish(
            app="contracts", image="local", region="", max_of_queue=99, max_of_all=99, life_seconds=3600.0
        )
        machine = queues.reserve_one(group, wish)
        self.launcher.launch(machine)
        self.arranged.append(machine)
        return self.boot(machine)

    def tidy(self) -> None:
        """The machines that only arranged something are gone, and nothing remembers them."""
        for machine in self.arranged:
            machine.refresh_from_db()
            self.end(machine.fly_id)
            machine.delete()
        self.arranged.clear()

    def boot(self, machine: Any) -> Claimant:
        """The machine's process says that it is up, with a boot id of its own."""
        boot_id = secrets.token_hex(16)
        assert machines.check_in(machine.name, boot_id=boot_id, fly_id="", region="iad", stages={})
        return Claimant(machine.pk, boot_id, machine.backend, machine.queue, machine.spec_key)

    def claim(self, by: Claimant) -> Claim | None:
        held = claims.claim(by, lease_seconds=45, life_seconds=3600)
        if held is not None:
            self.claimed.append(held.run_id)
            self.held[held.run_id, held.epoch] = held
        return held

    def execute(self, held: Claim) -> None:
        """Call the task, and record what came of it."""
        testing._execute(held, "a machine of the shop")

    def work(self) -> None:
        """Machines that were created boot, execute one run each, and leave."""
        for machine in [each for each in machines.live() if each.status == "created"]:
            by = self.boot(machine)
            if held := self.claim(by):
                self.execute(held)
            machines.leaves(by.machine_id, by.boot_id, 1, "its one run is done")
            self.end(machine.fly_id)

    def end(self, fly_id: str) -> None:
        """The machine ends, and Fly knows."""
        with contextlib.suppress(NotFound):
            self.client.destroy(fly_id, force=True)
            until(lambda: self.client.get(fly_id).state == "destroyed")

    def machine_of(self, run_id: uuid.UUID) -> Machine:
        run = TaskRun.objects.get(pk=run_id)
        return Machine.objects.get(attempts__run=run, attempts__epoch=run.epoch)

    # Dispatchers ----------------------------------------------------------------------------------------------------

    def tick(self) -> int:
        """One tick of a dispatcher, and one claim by each machine that it launched; how many runs were claimed."""
        dispatcher(self.launcher).tick()
        created = [machine for machine in machines.live() if machine.status == "created"]
        return sum(self.claim(self.boot(machine)) is not None for machine in created)

    def launch(self) -> None:
        """What a dispatcher does about a wake-up."""
        dispatcher(self.launcher).consider(*QUEUE)

    def note_wake_up(self, backend: str, queue: str) -> None:
        self.woken.append((backend, queue))

    def deliver(self) -> None:
        """Every wake-up arrives, and the machines that were launched for it work."""
        for lane in self.woken:
            dispatcher(self.launcher).woken(*lane)
        self.woken.clear()
        self.work()

    def lose(self) -> None:
        self.woken.clear()

    # Recovery -------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """What goes on by itself, whatever has died: time passes, machines end, dispatchers tick, machines work."""
        self.bury()
        until(self._a_round, 60, lambda: [*TaskRun.objects.values_list("status", "reason")])
        assert not runs.due_groups()

    def _a_round(self) -> bool:
        """Whether there is nothing more to do."""
        self.let_time_pass()
        self.reconcile()
        dispatcher(self.launcher).tick()
        self.work()
        self.reconcile()
        return not (runs.due_groups() or machines.live())

    def bury(self) -> None:
        """A machine whose runner died in the middle has ended."""
        for machine in machines.live():
            if machine.status in ("booted", "idle", "busy", "retiring") and machine.fly_id:
                self.end(machine.fly_id)

    def let_time_pass(self) -> None:
        """Leases of dead dispatchers, pauses and backoffs are over."""
        DispatcherRow.objects.update(leads_until=None)
        Queue.objects.update(launch_after=None)
        TaskRun.objects.filter(status="READY", run_after__gt=Now()).update(run_after=Now())
        for name in ("reserved_at", "requested_at", "created_at"):
            Machine.objects.update(**{name: F(name) - AGE_OF_TIME})

    def reconcile(self, reconciler: Reconciler | None = None) -> None:
        """Rounds of the reconciler, until no machine is on its way out."""
        rounds = reconciler or Reconciler()

        def settled() -> bool:
            rounds(self.launcher)
            return not any(each.status == "retiring" for each in machines.live())

        until(settled)

    # Retention ------------------------------------------------------------------------------------------------------

    def settled(self) -> TaskRun:
        """A run that was cancelled longer ago than such runs are kept."""
        run = self.owed(LONG_AGO)
        runs.cancel(run.pk)
        TaskRun.objects.filter(pk=run.pk).update(finished_at=Now() - LONG_AGO)
        return run

    def living(self) -> Machine:
        """A machine that was reserved long ago, and that nobody has seen end."""
        self.owed()
        machine = Machine.objects.get(pk=self.spare().machine_id)
        Machine.objects.filter(pk=machine.pk).update(reserved_at=Now() - LONG_AGO)
        return machine

    def ended(self) -> Machine:
        """A machine that has been gone for longer than such machines are kept."""
        machine = self.living()
        self.end(machine.fly_id)
        machines.gone(machine, state="destroyed", exit_event=None)
        Machine.objects.filter(pk=machine.pk).update(gone_at=Now() - LONG_AGO)
        return machine

    def prune(self) -> None:
        """What the leader does each second, of a dispatcher that has just started."""
        dispatcher(self.launcher)._prune()

    # How an owner dies, and how that is noticed ---------------------------------------------------------------------

    def expire(self, run_id: uuid.UUID) -> None:
        TaskRun.objects.filter(pk=run_id).update(lease_expires_at=Now() - AGE_OF_TIME)

    def end_its_machine(self, run_id: uuid.UUID) -> None:
        self.expire(run_id)
        self.end(self.machine_of(run_id).fly_id)

    def restart(self, run_id: uuid.UUID) -> str | None:
        """Its machine starts its process again, which says so: "lost", or None when it left the run alone."""
        before = runs.get(run_id).lost_attempts
        self.spares.append(self.boot(self.machine_of(run_id)))
        return "lost" if runs.get(run_id).lost_attempts > before else None

    def reclaim(self, run_id: uuid.UUID) -> str | None:
        """A reconciler that has watched for longer than it must: "lost", or None when it left the run alone."""
        before = runs.get(run_id).lost_attempts
        reconciler = Reconciler()
        self.reconcile(reconciler)
        watched = AGE_OF_TIME.total_seconds() + 1
        reconciler._silent_since = {key: since - watched for key, since in reconciler._silent_since.items()}
        self.reconcile(reconciler)
        return "lost" if runs.get(run_id).lost_attempts > before else None

    # What can be seen -----------------------------------------------------------------------------------------------

    def seen(self, run_id: uuid.UUID) -> tuple[Any, ...]:
        """All of a run that an owner's writes could change."""
        names = ("status", "epoch", "lease_expires_at", "finished_at", "return_value", "reason", "run_after")
        return tuple(TaskRun.objects.values_list(*names, "task_attempts", "lost_attempts").get(pk=run_id))

    def version(self, run_id: uuid.UUID) -> tuple[Any, ...]:
        """Another one after each write to the run's row, even one that changes nothing."""
        [row] = TaskRun.objects.raw(
            "SELECT id, xmin::text AS x, ctid::text AS c FROM machinequeue_taskrun WHERE id = %s", [run_id]
        )
        return (row.x, row.c)

    def machines_there(self) -> int:
        """Machines that Fly has."""
        return sum(each.state not in ("destroyed", "destroying") for each in self.client.list())


SHOP = Shop()
