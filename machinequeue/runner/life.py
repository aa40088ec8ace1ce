"""A machine's life: check in, execute what is ready, wait a little for more, leave."""

import itertools
import logging
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

from machinequeue import conf
from machinequeue.records import claims, machines, migrations, profiles, sql
from machinequeue.records.claims import Claim, Claimant
from machinequeue.runner import processes
from machinequeue.runner.news import News
from machinequeue.runner.output import read_available
from machinequeue.runner.persist import persist
from machinequeue.runner.supervisor import Supervisor
from machinequeue.runner.template import Template
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.runner")

POLL_FIRST = 0.02
POLL_LONGEST = 0.25
LISTEN_POLL = 2.0
"""How often a machine that LISTENs looks anyway: a pooler may swallow notifications."""
LEARN_AFTER = 1.0
"""Seconds of waiting after which there is time to store what runs took."""


class Stop:
    """SIGTERM and SIGINT, noted; `descriptor` becomes readable."""

    def __init__(self) -> None:
        self.asked = False
        self.descriptor, waker = os.pipe()
        for end in (self.descriptor, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.asked = True


@dataclass
class Tally:
    """What the runs of each task took, to be learned when there is time."""

    runs: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    def add(self, task: str, report: claims.Report) -> None:
        self.runs.setdefault(task, []).append(report.seconds or 0.0)
        self.peaks[task] = max(self.peaks.get(task, 0), report.peak_memory_mb or 0)

    def learn(self) -> None:
        """Store it. What cannot be stored is forgotten: it is an estimate."""
        try:
            for task, seconds in self.runs.items():
                profiles.learn(task, len(seconds), sum(seconds), self.peaks[task] or None)
        except (DatabaseError, InterfaceError):
            connections.close_all()
        self.runs.clear()
        self.peaks.clear()


def live(name: str) -> int:
    """The whole life of the machine called `name`. Returns the exit code: 0 also when there was nothing to do."""
    os.environ["MACHINEQUEUE_MACHINE"] = name
    for token in conf.TOKENS:
        os.environ.pop(token, None)
    stages = {"setup": _since_start()}
    template = Template.start()
    processes.adopt_orphans()  # of a template that dies
    stop = Stop()
    boot_id = secrets.token_hex(16)
    stages["template"] = _since_start()
    fly_id, region = os.environ.get("FLY_MACHINE_ID", ""), os.environ.get("FLY_REGION", "")
    try:
        checked_in = persist(
            lambda: machines.check_in(name, boot_id=boot_id, fly_id=fly_id, region=region, stages=stages)
        )
    except DatabaseError as error:
        template.close()
        if not migrations.may_be_missing(error):
            raise
        # Nothing is claimed yet: the run waits for the next machine.
        emit("machine.refused", machine=name, reason=persist(migrations.unapplied) or str(error))
        return 1
    if checked_in is None:
        # A machine that boots after it was given up finds its work done by another.
        emit("machine.late", machine=name)
        own = connections[sql.alias()].settings_dict
        sys.stderr.write(
            f"No row for machine {name} in database {own['NAME']} at {own.get('HOST') or 'this computer'}: "
            "it was given up meanwhile, or this is not the dispatcher's database.\n"
        )
        template.close()
        return 0
    supervisor = Supervisor(
        template,
        fly_id or name,
        lambda: stop.asked,
        stop.descriptor,
        isolation=checked_in.isolation,
        image=checked_in.image,
    )
    machine = _Machine(checked_in, boot_id, supervisor, stop, time.monotonic() + checked_in.life_seconds)
    try:
        reason, code = machine.work(), 0
    except Exception as error:
        logger.exception("The runner of machine %s failed", name)
        reason, code = f"its runner failed: {type(error).__name__}", 1
    machine.tally.learn()
    persist(lambda: machines.leaves(checked_in.machine_id, boot_id, machine.runs, reason))
    emit("machine.leaves", machine=name, runs=machine.runs, reason=reason)
    template.close()
    return code


def _since_start() -> float:
    """Seconds since this process was started; 0.0 where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0.0
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 3)


@dataclass
class _Machine:
    checked_in: machines.CheckIn
    boot_id: str
    supervisor: Supervisor
    stop: Stop
    ends_at: float
    """When its life is over, on the monotonic clock."""
    runs: int = 0
    reason: str = "nothing is ready"
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        me = self.checked_in
        self.claimant = Claimant(me.machine_id, self.boot_id, me.backend, me.queue, me.spec_key)
        self.news = News("machinequeue", lambda payload: payload == me.queue)
        self.alone = me.isolation == "machine"

    def work(self) -> str:
        """Execute runs until there is a reason to leave; the reason."""
        self.supervisor.template.prepare(self.checked_in.task)
        while not self.stop.asked:
            self.supervisor.template.listen_within(0)
            claim = self._claim() or self._wait_for_claim()
            if claim is None:
                break
            report = self.supervisor.execute(claim)
            if report.succeeded:
                self.tally.add(claim.task, report)
            self.runs += 1
            if self.alone:
                return "its one run is done"
            if self.supervisor.outdated:
                return "its image is not current"
        return "asked to stop" if self.stop.asked else self.reason

    def _claim(self) -> Claim | None:
        """The next run. A claim that is tried again may have taken one already, and only its answer was lost."""
        lease, tries = self.supervisor.settings.lease_seconds, itertools.count()

        def take() -> Claim | None:
            held = claims.unanswered(self.claimant, lease_seconds=lease) if next(tries) else None
            return held or claims.claim(self.claimant, lease_seconds=lease, life_seconds=self._life)

        return persist(take)

    def _wait_for_claim(self) -> Claim | None:
        """Wait as an idle machine, as long as the queue's policy says. None, and the reason, when that is over."""
        idle_timeout = conf.policy(self.checked_in.backend, self.checked_in.queue).idle_timeout
        ends_at = min(time.monotonic() + idle_timeout, self.ends_at - conf.GRACE_SECONDS)
        waits_since, looked_at, pause = time.monotonic(), -LISTEN_POLL, POLL_FIRST
        while not self.stop.asked and (time.monotonic() < ends_at or self._is_kept()):
            if time.monotonic() - looked_at >= LISTEN_POLL:
                if reason := persist(partial(self._reason_to_leave, first=looked_at < waits_since)):
                    self.reason = reason
                    return None
                looked_at = time.monotonic()
            persist(self.news.listen)
            if claim := self._claim():
                return claim
            if time.monotonic() - waits_since > LEARN_AFTER:
                self.tally.learn()
            longest = LISTEN_POLL if self.news.listening else pause
            left = ends_at - time.monotonic()
            self.news.wait(min(longest, left) if left > 0 else longest, self.stop.descriptor)
            read_available(self.stop.descriptor)
            pause = min(pause * 1.3, POLL_LONGEST)
        return None

    def _is_kept(self) -> bool:
        """Whether the queue keeps this machine waiting, though it has been idle for long."""
        least = conf.policy(self.checked_in.backend, self.checked_in.queue).min_machines
        if not least or self._life <= 0:
            return False
        return persist(lambda: machines.others(self.checked_in.machine_id)) < least

    def _reason_to_leave(self, *, first: bool) -> str:
        """Be idle; empty unless there is a reason not to wait on. The first look of a wait asks what is quick."""
        if not machines.idle(self.checked_in.machine_id, self.boot_id, self.runs):
            return "asked to retire"
        if not first and claims.outlived(self.claimant, life_seconds=self._life):
            return "too little life left for a run that waits"
        return ""

    @property
    def _life(self) -> float:
        return self.ends_at - time.monotonic() - conf.GRACE_SECONDS
