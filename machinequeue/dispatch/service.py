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

from django.db import DatabaseError, InterfaceError, close_old_connections, connections

from machinequeue import conf, wakeups
from machinequeue.dispatch.launch import Launcher
from machinequeue.machines.errors import MachinesError
from machinequeue.records import dispatchers, machines, queues, runs
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.dispatch")

TICK_SECONDS = 1.0
LEASE_SECONDS = 10.0
WORKER_CHECK_SECONDS = 10.0
RECONCILE_SECONDS = 2.0
BURST_SECONDS = 0.05
"""Wake-ups of one queue that come closer together than this are answered together."""

Reconcile = Callable[[Launcher], object]


@dataclass
class Dispatcher:
    """Threads for wake-ups, and `serve()` for the clock in the caller's thread. Any number may run at once."""

    launcher: Launcher
    reconcile: Reconcile
    """Compares rows with machines; called by the leader."""
    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")
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
        self._announce()
        last_check = time.monotonic()
        while not self._stop.is_set():
            begin = time.monotonic()
            self._guarded(self.tick)
            if time.monotonic() - last_check > WORKER_CHECK_SECONDS:
                consumer.check()
                last_check = time.monotonic()
            self._stop.wait(max(0.0, TICK_SECONDS - (time.monotonic() - begin)))
        consumer.stop()
        self._guarded(lambda: dispatchers.leave(self.name))
        connections.close_all()
        emit("dispatcher.stopped", dispatcher=self.name)

    def stop(self) -> None:
        """Ask `serve()` to end after what it does now. Safe in a signal handler."""
        self._stop.set()

    def _announce(self) -> None:
        try:
            version = self.launcher.adopt_own_machine()
        except MachinesError as error:
            logger.warning("This dispatcher's own machine could not be read, its env is not passed on: %s", error)
            version = 0
        if image := conf.settings().image:
            self._guarded(lambda: dispatchers.announce(image, version))

    def _guarded(self, step: Callable[[], object]) -> None:
        close_old_connections()
        try:
            step()
        except (DatabaseError, InterfaceError) as error:
            emit("database.unreachable", dispatcher=self.name, error=f"{type(error).__name__}: {error}".strip())
            connections.close_all()
        except Exception:
            # A dispatcher that dies of one bad row helps nobody; the next tick tries again.
            logger.exception("A step of the dispatcher failed.")

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
        self._consider_all()
        if dispatchers.lead(self.name, LEASE_SECONDS):
            runs.expire()
            for machine in machines.unlaunched():
                self.launcher.launch(machine)
            self._reconcile_now_and_then()

    def _consider_all(self) -> None:
        for group in runs.due_groups():
            self._guarded(partial(self._launch_for, group))  # one bad row must not keep the others waiting

    def _reconcile_now_and_then(self) -> None:
        if time.monotonic() - getattr(self, "_reconciled_at", 0.0) >= RECONCILE_SECONDS:
            self.reconcile(self.launcher)
            self._reconciled_at = time.monotonic()

    # The decision ---------------------------------------------------------------------------------------------------

    def consider(self, backend: str, queue: str) -> None:
        """Launch what the due runs of one queue need."""
        for group in runs.due_groups(backend, queue):
            self._launch_for(group)

    def _launch_for(self, group: runs.Group) -> None:
        settings = conf.settings()
        policy = conf.policy(group.backend, group.queue)
        wish = queues.Wish(
            app=settings.app,
            image=dispatchers.current_image() or settings.image,
            region="",
            max_of_queue=policy.max_machines,
            max_of_all=settings.max_machines,
            # From the reservation on, so that a slow boot takes nothing from the life that a long run needs.
            life_seconds=policy.machine_life + settings.boot_timeout,
        )
        reservation = queues.reserve(group, wish)
        if reservation.idle:
            queues.wake_idle(group.queue)
        for machine in reservation.machines:
            if self._stop.is_set():
                return  # the row stays reserved; another dispatcher, or this one's next life, launches it
            self.launcher.launch(machine)
