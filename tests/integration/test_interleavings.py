"""Random interleavings of dispatchers, runners and operators: no illegal status, no cap exceeded, no success twice."""

import datetime
import secrets
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from machinequeue import lifecycle
from machinequeue.lifecycle import FINISHED, AttemptStatus, Failure
from machinequeue.models import Attempt, Circuit, Machine, Queue, TaskProfile, TaskRun
from machinequeue.records import claims, machines, profiles, queues, runs
from machinequeue.records.claims import Claim, Claimant, Report
from tests.integration.conftest import WISH
from tests.workshop import tasks

CAP = 3
TIGHT = replace(WISH, max_of_queue=CAP, max_of_all=CAP)
FAILURES = st.sampled_from(
    [
        AttemptStatus.FAILED,
        AttemptStatus.TIMED_OUT,
        AttemptStatus.OUT_OF_MEMORY,
        AttemptStatus.LOST,
        AttemptStatus.INTERRUPTED,
        AttemptStatus.CANCELLED,
    ]
)
WHO = st.integers(0, 2)
WHICH = st.integers(0, 99)
FAR = datetime.timedelta(days=1)


class Shop(RuleBasedStateMachine):
    """Two dispatchers, three runners, and operators who cancel and retry, on real rows."""

    def __init__(self) -> None:
        super().__init__()
        for model in (Attempt, Machine, TaskRun, Queue, Circuit, TaskProfile):
            model._default_manager.all().delete()
        self.statuses: dict[Any, str] = {}
        self.up: dict[int, Claimant] = {}
        """Runners that have checked in, by their number."""
        self.held: dict[int, Claim] = {}
        self.late: list[Claim] = []
        """Claims whose holders are presumed dead, and who may write any time."""

    # Users ----------------------------------------------------------------------------------------------------------

    @rule(priority=st.integers(-5, 5), big=st.booleans())
    def enqueue(self, priority: int, big: bool) -> None:
        tasks.add.using(priority=priority, max_attempts=2, memory_mb=1024 if big else 512).enqueue(1)

    @precondition(lambda self: self.statuses)
    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        runs.cancel(self._run(which))

    @precondition(lambda self: self.statuses)
    @rule(which=WHICH)
    def retry(self, which: int) -> None:
        runs.retry(self._run(which))

    def _run(self, which: int) -> Any:
        return [*self.statuses][which % len(self.statuses)]

    # Dispatchers ----------------------------------------------------------------------------------------------------

    @rule()
    def dispatch(self) -> None:
        profiles.fit()
        for group in runs.due_groups():
            for machine in queues.reserve(group, TIGHT).machines:
                machines.requesting(machine)

    @rule()
    def time_passes(self) -> None:
        TaskRun.objects.filter(status="READY").update(run_after=runs.database_now())

    @rule(which=WHICH)
    def a_machine_ends(self, which: int) -> None:
        """As the reconciler notes it: its attempts are lost, then it is gone."""
        live = machines.live()
        if not live:
            return
        row = live[which % len(live)]
        for run_id, epoch in runs.unfinished_attempts(row.pk):
            claims.fail(run_id, epoch, Failure(AttemptStatus.LOST, sentence="its machine ended"), Report())
        machines.gone(row, state="destroyed", exit_event=None)
        for number, by in [*self.up.items()]:
            if by.machine_id == row.pk:
                del self.up[number]
                if number in self.held:
                    self.late.append(self.held.pop(number))

    # Runners --------------------------------------------------------------------------------------------------------

    @rule(number=WHO)
    def check_in(self, number: int) -> None:
        if number in self.up:
            return
        waiting = Machine.objects.filter(status__in=("reserved", "created")).order_by("id").first()
        if waiting is None:
            return
        boot_id = secrets.token_hex(16)
        if machines.check_in(waiting.name, boot_id=boot_id, fly_id=secrets.token_hex(7), region="iad", stages={}):
            self.up[number] = Claimant(waiting.pk, boot_id, waiting.backend, waiting.queue, waiting.spec_key)

    @rule(number=WHO)
    def claim(self, number: int) -> None:
        if number in self.up and number not in self.held:
            got = claims.claim(self.up[number], lease_seconds=45, life_seconds=3600)
            if got is not None:
                self.held[number] = got

    @rule(number=WHO)
    def succeed(self, number: int) -> None:
        if number in self.held:
            claims.succeed(self.held.pop(number), "done", Report())

    @rule(number=WHO, how=FAILURES)
    def fail(self, number: int, how: AttemptStatus) -> None:
        if number in self.held:
            held = self.held.pop(number)
            claims.fail(held.run_id, held.epoch, Failure(how, sentence="it broke"), Report())
            # Only `time_passes` lets time pass, so that an example goes the same way twice.
            later = TaskRun.objects.filter(pk=held.run_id, status="READY", run_after__gt=runs.database_now())
            later.update(run_after=runs.database_now() + FAR)

    @rule(number=WHO)
    def rest(self, number: int) -> None:
        if number in self.up and number not in self.held:
            by = self.up[number]
            if not machines.idle(by.machine_id, by.boot_id, 0):
                machines.leaves(by.machine_id, by.boot_id, 0, "asked to retire")

    @precondition(lambda self: self.late)
    @rule(works=st.booleans())
    def who_was_presumed_dead_writes(self, works: bool) -> None:
        late = self.late.pop()
        before = TaskRun.objects.filter(pk=late.run_id).values_list("status", "epoch", "return_value").get()
        if works:
            claims.succeed(late, "too late", Report())
        else:
            claims.fail(late.run_id, late.epoch, Failure(AttemptStatus.FAILED), Report())
        assert not claims.heartbeat(late, lease_seconds=900, pid=1).held
        assert TaskRun.objects.filter(pk=late.run_id).values_list("status", "epoch", "return_value").get() == before

    # What always holds ----------------------------------------------------------------------------------------------

    @invariant()
    def statuses_follow_the_table(self) -> None:
        for run_id, status in TaskRun.objects.values_list("pk", "status"):
            before = self.statuses.get(run_id, "READY")
            assert status == before or lifecycle.may(before, status), (before, status)
            self.statuses[run_id] = status

    @invariant()
    def caps_hold(self) -> None:
        assert Machine.objects.exclude(status="gone").count() <= CAP

    @invariant()
    def a_run_has_one_holder_and_one_success(self) -> None:
        for run in TaskRun.objects.prefetch_related("attempts"):
            attempts = Counter(attempt.status for attempt in run.attempts.all())
            current = [attempt for attempt in run.attempts.all() if attempt.epoch == run.epoch]
            assert attempts["running"] == (run.status == "RUNNING")
            assert attempts["succeeded"] == (run.status == "SUCCESSFUL")
            if run.status == "RUNNING":
                assert [attempt.status for attempt in current] == ["running"]
                assert run.lease_expires_at is not None
            assert (run.finished_at is not None) == (run.status in FINISHED)
            assert run.lost_attempts <= lifecycle.INFRASTRUCTURE_BUDGET
            assert run.spec["memory_mb"] <= run.spec["max_memory_mb"]


@pytest.mark.slow
@pytest.mark.django_db
@pytest.mark.usefixtures("woken")
def test_no_interleaving_reaches_an_illegal_state() -> None:
    run_state_machine_as_test(
        Shop,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
