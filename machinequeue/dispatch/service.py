"""The dispatcher: wake-ups and a clock that both ask the same question, "which queue needs machines?"."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from django.db import DatabaseError, InterfaceError, close_old_connections, connections

from machinequeue import conf, wakeups
from machinequeue.dispatch.launch import CONTAINER, Launcher
from machinequeue.dispatch.migrations import Unmigrated
from machinequeue.dispatch.serverless import Keeper
from machinequeue.lifecycle import CircuitKind
from machinequeue.machines.errors import MachinesError
from machinequeue.records import (
    Machine,
    backups,
    circuits,
    dispatchers,
    machines,
    migrations,
    profiles,
    pruning,
    queues,
    runs,
)
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.dispatch")

TICK_SECONDS = 1.0
LEASE_SECONDS = 10.0
WORKER_CHECK_SECONDS = 10.0
RECONCILE_SECONDS = 2.0
BURST_SECONDS = 0.05
"""Wake-ups of one queue that come closer together than this are answered together."""

Reconcile = Callable[[Launcher], object]


class Contain(Protocol):
    """Who looks after the machines that run code that is not ours."""

    def __call__(self, launcher: Launcher, dispatcher: str) -> object:
        """Look for machines that nobody looks after; called often, and by several threads."""

    def close(self) -> None:
        """Give back what runs; no more is looked after."""


@dataclass
class Dispatcher:
    """Threads for wake-ups, and `serve()` for the clock in the caller's thread. Any number may run at once."""

    launcher: Launcher
    reconcile: Reconcile
    """Compares rows with machines; called by the leader."""
    enqueue_due: Callable[[], object] = lambda: None
    """Enqueues what schedules are due for; every dispatcher calls it, each second."""
    keep_schedules: Callable[[], object] = lambda: None
    """Makes the schedules' rows what the code says, and tidies up; called by the leader."""
    contain: Contain | None = None
    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")
    unmigrated: Unmigrated = field(default_factory=Unmigrated)
    """Why nothing may be launched yet; empty when it may."""
    _unannounced: str = "the dispatcher is starting"
    """Why this dispatcher does not know its own machine yet; empty when it does."""
    _keeper: Keeper | None = None
    _announce_at: float = 0.0
    _pruner: pruning.Pruner = field(default_factory=pruning.Pruner)
    _stop: threading.Event = field(default_factory=threading.Event)
    _deciding: threading.Lock = field(default_factory=threading.Lock)
    _asked: set[tuple[str, str]] = field(default_factory=set)
    _recent_lock: threading.Lock = field(default_factory=threading.Lock)
    _recent: dict[tuple[str, str], float] = field(default_factory=dict)
    _later: set[tuple[str, str]] = field(default_factory=set)

    def serve(self) -> None:
        """Run until `stop()`. Neither a database nor a Redis nor an API that is away ends it."""
        consumer = wakeups.Consumer(self.woken, conf.settings().workers)
        consumer.start()
        emit("dispatcher.started", dispatcher=self.name)
        # What the last dispatcher's settings had wrong may be right now.
        mended = (CircuitKind.TOKEN, CircuitKind.APP, CircuitKind.QUOTA, CircuitKind.REJECTED)
        self._guarded(lambda: circuits.close(*mended))
        last_check = time.monotonic()
        while not self._stop.is_set():
            begin = time.monotonic()
            self._guarded(self.tick)
            if time.monotonic() - last_check > WORKER_CHECK_SECONDS:
                consumer.check()
                last_check = time.monotonic()
            self._stop.wait(max(0.0, TICK_SECONDS - (time.monotonic() - begin)))
        consumer.stop()
        if self.contain is not None:
            self._guarded(self.contain.close)
        self.launcher.close()
        self._guarded(lambda: dispatchers.leave(self.name))
        connections.close_all()
        emit("dispatcher.stopped", dispatcher=self.name)

    def stop(self) -> None:
        """Ask `serve()` to end after what it does now. Safe in a signal handler."""
        self._stop.set()

    def _announce(self) -> None:
        """Take over what this dispatcher's machine has, and say which image is here; tried until it is done.

        Machines launched before that would lack the env of fly.toml, and be of the release before.
        """
        try:
            version = self.launcher.adopt_own_machine()
        except MachinesError as error:
            if error.retryable:
                self._unannounced = f"the dispatcher's own machine could not be read: {error.message}"
                return
            logger.warning("This dispatcher's own machine cannot be read, so its env is not passed on: %s", error)
            version = 0
        if image := conf.settings().image:
            dispatchers.announce(image, version)
        self._unannounced = ""

    def _held_back(self) -> str:
        """Why nothing may be launched yet; empty when it may."""
        if self._unannounced and time.monotonic() >= self._announce_at:
            self._announce_at = time.monotonic() + TICK_SECONDS
            self._announce()
        return self._unannounced or self.unmigrated()

    def _guarded(self, step: Callable[[], object]) -> None:
        close_old_connections()
        try:
            step()
        except (DatabaseError, InterfaceError) as error:
            connections.close_all()
            if not self._is_outdated(error):
                emit("database.unreachable", dispatcher=self.name, error=f"{type(error).__name__}: {error}".strip())
        except Exception:
            # A dispatcher that dies of one bad row helps nobody; the next tick tries again.
            logger.exception("A step of the dispatcher failed.")

    def _is_outdated(self, error: DatabaseError | InterfaceError) -> bool:
        """Whether a step failed because this release is here before its migrations; says so."""
        try:
            reason = self.unmigrated.missed() if migrations.may_be_missing(error) else ""
        except (DatabaseError, InterfaceError):
            reason = ""
        if reason:
            emit("database.outdated", dispatcher=self.name, reason=reason)
        return bool(reason)

    def _must_wait(self) -> bool:
        """Whether nothing can be done before migrations are applied; the runs that wait are told why."""
        if reason := self.unmigrated.blocks():
            for group in runs.due_groups():
                queues.explain((group.backend, group.queue, group.spec_key), reason)
        return bool(reason)

    # Wake-ups -------------------------------------------------------------------------------------------------------

    def woken(self, backend: str, queue: str) -> None:
        """Answer a wake-up. A burst of them is two questions: one at its begin, one when it has gone on for a moment.

        Who comes while another decides only leaves a note.
        """
        if not self._is_first((backend, queue)):
            return
        self._asked.add((backend, queue))
        while self._asked and self._deciding.acquire(blocking=False):
            try:
                if self._asked:
                    lane = self._asked.pop()
                    self._guarded(partial(self.consider, *lane))
            finally:
                self._deciding.release()

    def _is_first(self, lane: tuple[str, str]) -> bool:
        """Whether the lane was not asked about a moment ago; if it was, it is asked about again in a moment."""
        with self._recent_lock:
            now = time.monotonic()
            if now - self._recent.get(lane, -BURST_SECONDS) >= BURST_SECONDS:
                self._recent[lane] = now
                return True
            if lane not in self._later:
                self._later.add(lane)
                timer = threading.Timer(BURST_SECONDS, self._ask_again, lane)
                timer.daemon = True
                timer.start()
            return False

    def _ask_again(self, *lane: str) -> None:
        with self._recent_lock:
            self._later.discard((lane[0], lane[1]))
            self._recent.pop((lane[0], lane[1]), None)
        if not self._stop.is_set():
            self.woken(lane[0], lane[1])
        connections.close_all()  # of this timer's thread

    # The clock ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """What every second brings, whether or not a message arrived."""
        dispatchers.seen(self.name)
        if self._must_wait():
            return
        self._guarded(self.enqueue_due)
        self._consider_all()
        self._guarded(self._contain)
        if dispatchers.lead(self.name, LEASE_SECONDS):
            # Each on its own: what one stumbles over must not keep the others from being done.
            for step in (
                self._reconcile_now_and_then,
                runs.expire,
                circuits.mend,
                backups.settle,
                self._retire_outdated,
                self._keep_machines,
                self._launch_forgotten,
                self.keep_schedules,
                self._prune,
                self._keep_serverless,
            ):
                self._guarded(step)

    def _prune(self) -> None:
        """Delete a little of what is kept no longer."""
        pruned = self._pruner.step()
        if pruned.runs or pruned.machines:
            emit("rows.pruned", runs=pruned.runs, machines=pruned.machines)

    def _contain(self) -> None:
        if self.contain is not None:
            self.contain(self.launcher, self.name)

    def _keep_serverless(self) -> None:
        """The machines that answer requests, see `Keeper`."""
        if self._held_back():
            return
        if self._keeper is None:
            self._keeper = Keeper(self.launcher)
        self._keeper()

    def _launch_forgotten(self) -> None:
        for machine in machines.unlaunched():
            if self._stop.is_set() or not self._launch_one(machine):
                return

    def _consider_all(self) -> None:
        profiles.fit()
        for group in runs.due_groups():
            self._guarded(partial(self._launch_for, group))  # one bad row must not keep the others waiting

    def _reconcile_now_and_then(self) -> None:
        if time.monotonic() - getattr(self, "_reconciled_at", 0.0) >= RECONCILE_SECONDS:
            self.reconcile(self.launcher)
            self._reconciled_at = time.monotonic()

    # The decision ---------------------------------------------------------------------------------------------------

    def consider(self, backend: str, queue: str) -> None:
        """Launch what the due runs of one queue need."""
        if self._must_wait():
            return
        profiles.fit()
        for group in runs.due_groups(backend, queue):
            self._launch_for(group)

    def _launch_for(self, group: runs.Group) -> None:
        if reason := self._held_back():
            queues.explain((group.backend, group.queue, group.spec_key), reason)
            return
        reservation = queues.reserve(group, self._wish(group))
        if reservation.idle:
            queues.wake_idle(group.queue)
        self._launch(reservation)

    def _launch(self, reservation: queues.Reservation) -> None:
        for machine in reservation.machines:
            if self._stop.is_set() or not self._launch_one(machine):
                if machines.release(reservation.machines):
                    circuits.give_back(machine.image, machine.spec_key)
                return

    def _launch_one(self, machine: Machine) -> bool:
        """See `Launcher.launch`; it may take a while, in which this dispatcher must not seem to be away."""
        launched = self.launcher.launch(machine)
        dispatchers.seen(self.name)
        if launched and CONTAINER in machine.spec:
            self._contain()  # it is to be taken up as soon as it runs
        return launched

    def _wish(self, group: runs.Group) -> queues.Wish:
        settings = conf.settings()
        policy = conf.policy(group.backend, group.queue)
        return queues.Wish(
            app=conf.container_app(settings) if CONTAINER in group.spec else settings.app,
            image=group.spec.get("image") or dispatchers.current_image() or settings.image,
            region="",
            max_of_queue=policy.max_machines,
            max_of_all=conf.most_machines(settings),
            # From the reservation on, so that a slow boot takes nothing from the life that a long run needs.
            # A run may have been enqueued when machines were allowed to live longer.
            life_seconds=max(policy.machine_life, group.timeout + 2 * conf.GRACE_SECONDS) + settings.boot_timeout,
            max_of_containers=self._looked_after() if CONTAINER in group.spec else None,
        )

    def _looked_after(self) -> int:
        alive = {self.name, *dispatchers.alive(runs.DISPATCHER_SILENT)}
        return len(alive) * conf.settings().container_threads

    # What does not come from due runs -------------------------------------------------------------------------------

    def _retire_outdated(self) -> None:
        """Machines of an image that is not current finish their run and leave."""
        if not (image := dispatchers.current_image()):
            return
        circuits.forget_images(image)
        for machine in machines.other_images(image):
            if machines.retire(machine, "its image is not the current one"):
                emit("machine.outdated", machine=machine.name, image=machine.image)
                queues.wake_idle(machine.queue)

    def _keep_machines(self) -> None:
        """The machines that queues keep waiting."""
        if self._held_back():
            return
        for backend, queue, policy in conf.kept_queues():
            spec = conf.spec_of(policy, conf.settings().image)
            group = runs.Group(backend, queue, conf.spec_key(spec), 0, spec, None)
            margin = conf.settings().check_in_timeout + conf.GRACE_SECONDS
            self._launch(queues.keep(group, self._wish(group), policy.min_machines, margin))
