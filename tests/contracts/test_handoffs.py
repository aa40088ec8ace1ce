"""The hand-offs of a run, held to the contracts of due-work-harness: lost messages, dead workers, late writers.

A run is handed over three times: an enqueue leaves a READY row, a dispatcher launches a machine for it, a machine
claims it and records the outcome. Every factory below says which line arranges, which is ours, what stands in for
somebody else, and what is looked at; the harness refuses bindings that do without.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from django.db import transaction
from django.db.models import F
from due_work_harness import (
    BoundedRetry,
    CallableDelivery,
    Claim,
    ConvergentWrite,
    Decline,
    DueWorkContract,
    DueWorkSweep,
    ExecutionGate,
    ExternalCall,
    FencedOwnership,
    HandoffHistory,
    InFlightExecution,
    NotApplicable,
    OwedWorkVariant,
    Profile,
    ReplaySafeEffect,
    Retention,
    SafetyContract,
    SafetyProfile,
    StateDerived,
    SupersededSnapshot,
    due_work_contract_suite,
)
from due_work_harness.integrations.django.lifecycle_states import Lifecycle
from due_work_harness.profiles.bounded_ownership import FENCED_OWNERSHIP_PROOFS, assert_live_lease_blocks_reclaim
from due_work_harness.safety.bounded_retry import BOUNDED_RETRY_PROOFS

from machinequeue import wakeups
from machinequeue.admin import summary
from machinequeue.dispatch.service import TICK_SECONDS
from machinequeue.lifecycle import INFRASTRUCTURE_BUDGET, AttemptStatus, Failure
from machinequeue.machines.client import MachinesClient
from machinequeue.models import Attempt, Machine, Queue, TaskRun
from machinequeue.records import claims, machines, queues, runs
from machinequeue.records.claims import Report
from machinequeue.testing import run_tasks
from tests.contracts.errands import PROVIDER, Provider
from tests.contracts.shop import LANE, LONG_AGO, QUEUE, SHOP, dispatcher

PAGE = 4
"""Machines of the queue at once, one run each: as many runs can a tick bring under way."""
NOW = timedelta(0)


def key_of(row: Any) -> UUID:
    return getattr(row, "pk", row)


# A: work that is owed is found without a wake-up ----------------------------------------------------------------------


@contextmanager
def held_open(row: TaskRun, tick: Callable[[], int]) -> Iterator[None]:
    tick()
    yield


def a_dispatcher_ticks_by_itself() -> None:
    ticks: list[float] = []
    enough = threading.Event()
    dispatching = dispatcher(SHOP.launcher)

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 2:
            enough.set()

    dispatching.tick = tick
    serving = threading.Thread(target=dispatching.serve)
    with mock.patch.object(wakeups, "Consumer"):  # it is the clock that this is about
        serving.start()
        came = enough.wait(60)
        dispatching.stop()
        serving.join(60)
    assert came, "a dispatcher that serves did not tick twice within ten seconds"


def sweep() -> DueWorkSweep:
    return DueWorkSweep(
        name="due runs",
        due_work=lambda: runs.in_line(*LANE),  # REAL PRODUCTION: the selection, in the order of a claim
        run_tick=SHOP.tick,  # REAL PRODUCTION: Dispatcher.tick, then check-in and claim of what it launched
        make_owed=SHOP.owed,  # ARRANGE
        make_terminal=SHOP.finished,  # ARRANGE: by cancel, expire, succeed and fail themselves
        additional_owed_variants=(
            OwedWorkVariant(name="its time has come", make=SHOP.deferred),
            OwedWorkVariant(name="its machine was lost", make=SHOP.lost_once),
        ),
        recovery_delay=NOW,
        page_size=PAGE,
        tick_interval=timedelta(seconds=TICK_SECONDS),
        assert_scheduled=a_dispatcher_ticks_by_itself,
        # EXTERNAL SEAM: the Machines API is the emulator; a machine sleeps while the test acts for its runner.
        dispatched_ids=lambda: list(SHOP.claimed),  # OBSERVE: what machines claimed
        identity_of=key_of,
        observe_outstanding=lambda: float(summary.figures()[0].number),  # what the admin's page shows
        in_flight=InFlightExecution(
            make_owed=lambda: SHOP.owed(timedelta(minutes=1)),
            start=held_open,
            execution_count_for=lambda row: Attempt.objects.filter(run_id=row.pk).count(),
        ),
        lifecycle=Lifecycle(
            state_fields=("status",),
            execute=lambda row: SHOP.tick(),
            inline_tick_because="machines pull: no message names a run, so nothing is executed for one run alone",
            excluded_states={"RUNNING": "a machine holds it; the proofs of bounded ownership take it from a dead one"},
            no_external_effect_because="the tick ends with the claim; what tasks do is in the proofs of replay",
            publishes_nothing_because="dispatcher and machine write rows only; wake-ups are sent by who enqueues",
        ),
    )


# B: one owner, who is fenced ------------------------------------------------------------------------------------------

SILENT, ENDED, RESTARTED = "silent", "ended with its machine", "followed by a newer boot of its machine"
DEATHS = {SILENT: SHOP.expire, ENDED: SHOP.end_its_machine, RESTARTED: SHOP.expire}
"""How an owner dies."""
FOUND = {SILENT: SHOP.reclaim, ENDED: SHOP.reclaim, RESTARTED: SHOP.restart}
"""How that is found: by rounds of the reconciler, or by the check-in of its successor."""


def ownership(death: str = SILENT) -> FencedOwnership:
    def token(epoch: int) -> UUID:
        return UUID(int=epoch)

    def claimable() -> UUID:
        run_id = SHOP.enqueue()
        SHOP.spares += [SHOP.spare(), SHOP.spare()]
        return run_id

    def claim() -> tuple[UUID, UUID] | None:
        held = SHOP.claim(SHOP.spares.pop())
        return None if held is None else (held.run_id, token(held.epoch))

    def ends(how: AttemptStatus, **more: Any) -> Callable[[UUID, UUID], bool]:
        failure = Failure(how, sentence="it ended", **more)
        return lambda run_id, held: claims.fail(run_id, held.int, failure, Report()) is not None

    return FencedOwnership(
        name=f"claims, whose owner is {death}",
        make_claimable=claimable,  # ARRANGE: a run, and two machines that are up
        claim=claim,  # REAL PRODUCTION: claims.claim
        fenced_write=lambda run_id, held: claims.succeed(SHOP.held[run_id, held.int], "done", Report()),
        other_fenced_writes={
            "fails": ends(AttemptStatus.FAILED),
            "is over its time": ends(AttemptStatus.TIMED_OUT),
            "is out of memory": ends(AttemptStatus.OUT_OF_MEMORY),
            "is interrupted": ends(AttemptStatus.INTERRUPTED),
            "says that it was cancelled": ends(AttemptStatus.CANCELLED),
        },
        release_unchanged=ends(AttemptStatus.INTERRUPTED, charged=False),
        renew_lease=lambda run_id, held: claims.heartbeat(SHOP.held[run_id, held.int], lease_seconds=45, pid=1).held,
        expire_lease=DEATHS[
            death
        ],  # EXTERNAL SEAM: the emulator ends the machine; the database's clock is moved by rows
        reclaim_stalled=FOUND[death],  # REAL PRODUCTION: the reconciler, machines.check_in
        observe=SHOP.seen,  # OBSERVE
    )


# A newer boot needs no lease to expire: it is itself the proof that the process before it has ended.
OTHER_DEATHS = [
    (death, proof)
    for death in (ENDED, RESTARTED)
    for proof in FENCED_OWNERSHIP_PROOFS
    if (death, proof) != (RESTARTED, assert_live_lease_blocks_reclaim)
]


@pytest.mark.django_db
@pytest.mark.parametrize(("death", "proof"), OTHER_DEATHS, ids=lambda value: getattr(value, "__name__", value))
def test_an_owner_that_died_in_another_way_is_fenced_too(death: str, proof: Callable[[FencedOwnership], None]) -> None:
    proof(ownership(death))


# E: late outcomes change nothing --------------------------------------------------------------------------------------


def convergence() -> ConvergentWrite:
    def held() -> tuple[UUID, tuple[Any, ...]]:
        run_id = SHOP.enqueue()
        SHOP.claim(SHOP.spare())
        return run_id, SHOP.seen(run_id)

    def ended() -> tuple[UUID, tuple[Any, ...]]:
        run_id, _ = held()
        failure = Failure(AttemptStatus.FAILED, sentence="it ended", retry=False)
        claims.fail(run_id, 1, failure, Report())
        return run_id, SHOP.seen(run_id)

    def outcome(state: tuple[UUID, tuple[Any, ...]]) -> tuple[UUID, tuple[Any, ...]]:
        claims.succeed(SHOP.held[state[0], 1], "done", Report(seconds=1.0))
        return state[0], SHOP.seen(state[0])

    return ConvergentWrite(
        name="outcomes",
        settled_state=ended,  # ARRANGE
        unsettled_state=held,  # ARRANGE
        apply_evidence=outcome,  # REAL PRODUCTION: claims.succeed
        # EXTERNAL SEAM: none beside the emulated machines
        is_settled=lambda state: state[1][0] in ("SUCCESSFUL", "FAILED"),  # OBSERVE: the row
    )


def snapshot() -> SupersededSnapshot:
    run_id = SHOP.enqueue()
    SHOP.spares += [SHOP.spare(), SHOP.spare()]

    def supersede() -> None:
        SHOP.end_its_machine(run_id)
        SHOP.reclaim(run_id)
        SHOP.claim(SHOP.spares.pop())

    return SupersededSnapshot(
        name="a runner and the claim that it was given",
        observe=lambda: SHOP.seen(run_id),  # OBSERVE: the row
        take_snapshot=lambda: SHOP.claim(SHOP.spares.pop()),  # ARRANGE: a claim, by claims.claim
        supersede=supersede,  # REAL PRODUCTION: the reconciler loses it, claims.claim gives it to another
        run_with_snapshot=SHOP.execute,  # REAL PRODUCTION: the task is called, its outcome recorded
        # EXTERNAL SEAM: the provider that the task asks
    )


# Paused queues: owed, and not executed --------------------------------------------------------------------------------


def paused() -> ExecutionGate:
    run_id = SHOP.enqueue()
    warm = SHOP.spare()
    machines.idle(warm.machine_id, warm.boot_id, 0)
    group = runs.due_groups(*QUEUE)[0]
    queues.explain((group.backend, group.queue, group.spec_key), "")
    row = Queue.objects.get_or_create(backend=QUEUE[0], name=QUEUE[1])[0]
    queues.set_paused(row.pk, paused=True)

    def resume() -> None:
        queues.set_paused(row.pk, paused=False)
        SHOP.lose()

    def recover() -> None:
        if held := SHOP.claim(warm):
            SHOP.execute(held)
        SHOP.tick()

    return ExecutionGate(
        name="a paused queue",
        identity=run_id,  # ARRANGE: a due run, a machine that waits, and a queue that an operator has paused
        due_work=lambda: [key_of(row) for row in runs.in_line(*LANE)],
        owed_work=lambda: [each for each in (run_id,) if runs.status(each) == "READY"],
        reserved_state=lambda: SHOP.seen(run_id),
        routes={  # REAL PRODUCTION
            "a wake-up": SHOP.launch,
            "a tick": SHOP.tick,
            "a machine that waits": lambda: SHOP.claim(warm),
        },
        make_eligible=resume,
        recover=recover,
        advance=lambda by: TaskRun.objects.filter(pk=run_id).update(run_after=F("run_after") - by),
        executions=lambda: len(runs.attempts(run_id)),
        mutation_count=lambda: SHOP.version(run_id),
        observe=lambda: runs.status(run_id),  # OBSERVE
        expected="SUCCESSFUL",
        effect_calls=lambda: PROVIDER.asked[str(run_id)],  # EXTERNAL SEAM: the provider that the task asks
        recovery_interval=timedelta(seconds=1),
        recovery_timeout=timedelta(seconds=10),
    )


# Replay and retry -----------------------------------------------------------------------------------------------------


def replay() -> ReplaySafeEffect:
    def executed_by_a_machine_that_dies(run_id: UUID) -> None:
        held = SHOP.claim(SHOP.spare())
        assert held is not None
        assert held.run_id == run_id
        SHOP.end_its_machine(run_id)
        SHOP.reclaim(run_id)
        SHOP.execute(held)  # the call reaches the provider; its outcome comes too late

    return ReplaySafeEffect(
        name="a task that names its run",
        prepare=SHOP.enqueue,  # ARRANGE
        execute=executed_by_a_machine_that_dies,  # REAL PRODUCTION: claim, call, the reconciler, claim again
        observe=lambda run_id: (
            PROVIDER.receipts(str(run_id)),
            runs.status(run_id)[:0],
        ),  # OBSERVE: what was done outside
        execution_count_for=lambda run_id: PROVIDER.asked[str(run_id)],  # EXTERNAL SEAM: the provider
    )


def failing_task() -> BoundedRetry:
    def failing() -> UUID:
        PROVIDER.away = True
        return SHOP.enqueue()

    return BoundedRetry(
        name="a task that keeps raising",
        max_executions=3,
        make_failing=failing,  # ARRANGE: the queue allows three attempts
        due_work=lambda: runs.in_line(*LANE),  # REAL PRODUCTION
        run_once=lambda run_id: run_tasks(most=1),  # REAL PRODUCTION: claim, call, claims.fail
        advance_to_due=lambda run_id: SHOP.let_time_pass(),
        is_terminal=lambda run_id: runs.status(run_id) == "FAILED",
        failure_attempt_count=lambda run_id: PROVIDER.asked[str(run_id)],  # EXTERNAL SEAM: the provider is away
        observe=lambda run_id: (SHOP.seen(run_id), PROVIDER.asked[str(run_id)]),  # OBSERVE
        identity_of=key_of,
    )


def dying_machines() -> BoundedRetry:
    def claimed_by_a_machine_that_dies(run_id: UUID) -> None:
        if SHOP.claim(SHOP.spare()) is not None:
            SHOP.end_its_machine(run_id)
            SHOP.reclaim(run_id)

    return BoundedRetry(
        name="a run whose machines keep dying",
        max_executions=INFRASTRUCTURE_BUDGET,
        make_failing=SHOP.enqueue,
        due_work=lambda: runs.in_line(*LANE),
        run_once=claimed_by_a_machine_that_dies,
        advance_to_due=lambda run_id: None,
        is_terminal=lambda run_id: runs.status(run_id) == "FAILED",
        failure_attempt_count=lambda run_id: Attempt.objects.filter(run_id=run_id, status="lost").count(),
        observe=SHOP.seen,
        identity_of=key_of,
    )


@pytest.mark.django_db
@pytest.mark.parametrize("proof", BOUNDED_RETRY_PROOFS, ids=lambda proof: proof.__name__)
def test_a_run_whose_machines_keep_dying_ends(proof: Callable[[BoundedRetry], None]) -> None:
    proof(dying_machines())


# Crash histories: death after every commit, after every call outside, with every message lost -------------------------


def order() -> dict[str, UUID]:
    return {}


def place(handle: dict[str, UUID]) -> None:
    """A view: what it writes and what it enqueues commit together."""
    with transaction.atomic():
        handle["run"] = run_id = SHOP.enqueue()
        assert runs.status(run_id) == "READY"


def waiting() -> dict[str, UUID]:
    handle = {"run": SHOP.enqueue()}
    SHOP.lose()
    return handle


def created() -> dict[str, UUID]:
    handle = waiting()
    SHOP.launch()
    return handle


def delivered(handle: dict[str, UUID]) -> tuple[Any, ...]:
    """What a user and an operator see: how the run ended, what the provider did, and what is left running."""
    if "run" not in handle:
        return ("nothing",)
    key = handle["run"]
    return runs.status(key), PROVIDER.receipts(str(key)), len(machines.live()), SHOP.machines_there()


HANDOFFS = (
    HandoffHistory(name="a view enqueues", arrange=order, transition=place, observe=delivered),
    HandoffHistory(
        name="a dispatcher launches",
        arrange=waiting,
        transition=lambda handle: SHOP.launch(),
        observe=delivered,
        external_calls=(ExternalCall(MachinesClient, "create"),),
    ),
    HandoffHistory(
        name="a machine executes",
        arrange=created,
        transition=lambda handle: SHOP.work(),
        observe=delivered,
        external_calls=(ExternalCall(Provider, "ask"),),
    ),
)


def retention() -> Retention:
    return Retention(
        name="finished runs",
        make_non_terminal=lambda: SHOP.owed(LONG_AGO),  # ARRANGE: as old, and still due
        make_prunable=SHOP.settled,  # ARRANGE: by cancel itself
        run_retention=SHOP.prune,  # REAL PRODUCTION: the step of a dispatcher that leads
        still_exists=lambda row: TaskRun.objects.filter(pk=row.pk).exists(),  # OBSERVE
        # EXTERNAL SEAM: none, only rows are deleted
    )


def retention_of_machines() -> Retention:
    return Retention(
        name="machines that are gone",
        make_non_terminal=SHOP.living,  # ARRANGE: a machine that was launched, and has checked in
        make_prunable=SHOP.ended,  # ARRANGE: by the API, and by the transition itself
        run_retention=SHOP.prune,  # REAL PRODUCTION: the same
        still_exists=lambda row: Machine.objects.filter(pk=row.pk).exists(),  # OBSERVE
        # EXTERNAL SEAM: the Machines API, where the machine lives and ends, is the emulator
    )


NAME = "runs"

RUNS = DueWorkContract(
    name=NAME,
    profiles={
        Profile.AUTOMATIC_RECOVERY: Claim(),
        Profile.BOUNDED_OWNERSHIP: Claim(),
        Profile.CRASH_AMBIGUITY: Decline(
            "A run executes at least once: an attempt that died with its machine is lost and another follows, within a "
            "budget, whether or not the task had reached somebody outside. Only the task can tell; it has the run's "
            "id, the same for all attempts, as a key that makes asking twice harmless (the proofs of replay)."
        ),
        Profile.DURABLE_RETENTION: Claim(),
        Profile.EVENTUAL_CONVERGENCE: Claim(),
        Profile.FACT_DERIVED_OBLIGATIONS: NotApplicable(
            "The obligation is the run's row, which the enqueue writes in the caller's transaction. What is derived "
            "from it, the machines, is a contract of its own."
        ),
    },
    safety=SafetyContract(
        name=NAME,
        profiles={SafetyProfile.REPLAY_SAFE_EXECUTION: Claim(), SafetyProfile.BOUNDED_RETRY: Claim()},
        replay=replay,
        retry=failing_task,
    ),
    sweep=sweep,
    ownership=ownership,
    convergence=convergence,
    snapshot=snapshot,
    retention=retention,
    eligibility={"a paused queue": paused},
    transactional=True,  # a dispatcher closes connections between two steps, which no test's transaction survives
    handoffs=HANDOFFS,
    handoff_delivery=CallableDelivery(
        name="wake-ups",
        deliver=SHOP.deliver,
        lose=SHOP.lose,
        recover=SHOP.recover,
    ),
)


@due_work_contract_suite(RUNS)
class TestRuns:
    pass


# Machines are derived from rows: nothing else says that one is wanted -------------------------------------------------


def demand() -> StateDerived:
    moved: list[tuple[str, str, str]] = []

    def lane(machine: Any) -> tuple[str, str, str]:
        return machine.backend, machine.queue, machine.spec_key

    def coming(wanted: tuple[str, str, str] | None = None) -> list[Any]:
        return [each for each in machines.live() if not each.booted_at and wanted in (None, lane(each))]

    def due() -> tuple[str, str, str]:
        SHOP.enqueue()
        SHOP.lose()
        return LANE

    def cancelled() -> tuple[str, str, str]:
        run = runs.get(SHOP.enqueue(memory_mb=2048))
        assert run is not None
        runs.cancel(run.pk)
        return lane(run)

    def another_size(before: tuple[str, str, str]) -> str:
        run = runs.get(SHOP.enqueue(memory_mb=1024))
        assert run is not None
        moved.append(lane(run))
        assert lane(run) != before
        return run.spec_key

    return StateDerived(
        name="machines that due runs need",
        make_implied_obligation=due,  # ARRANGE: a run, and no word of it to any dispatcher
        derive=SHOP.launch,  # REAL PRODUCTION: Dispatcher.consider, as each tick does
        outstanding=lambda: [lane(each) for each in coming()],  # OBSERVE: the machines on their way
        record_of=lambda wanted: [(each.name, each.status, each.requested_at) for each in coming(wanted)],
        settle=lambda wanted: SHOP.work(),  # REAL PRODUCTION: the machine checks in, claims, executes and leaves
        move_desired_state=another_size,
        identity_after_move=lambda before: moved[-1],
        desired_of=lambda wanted: coming(wanted)[0].spec_key,
        make_stopped=cancelled,
        # EXTERNAL SEAM: the Machines API is the emulator
    )


MACHINES = DueWorkContract(
    name="machines",
    profiles={
        Profile.AUTOMATIC_RECOVERY: NotApplicable(
            "No row says that a machine is owed, so none can be lost: every tick asks the runs again. What a "
            "dispatcher that dies between its row and the API leaves behind is in the history of a launch."
        ),
        Profile.BOUNDED_OWNERSHIP: NotApplicable(
            "A launch is owned by nobody: any dispatcher may make the create call of a reserved machine after a "
            "minute, and the name, which is unique, makes the second call harmless."
        ),
        Profile.CRASH_AMBIGUITY: NotApplicable(
            "A create whose answer is lost can be told from one that never came: the machine carries the row's name."
        ),
        Profile.DURABLE_RETENTION: Claim(),
        Profile.EVENTUAL_CONVERGENCE: NotApplicable(
            "A machine has no result; its statuses only advance, and the runs' outcomes are in the contract of runs."
        ),
        Profile.FACT_DERIVED_OBLIGATIONS: Claim(),
    },
    safety=SafetyContract(
        name="machines",
        profiles={
            SafetyProfile.REPLAY_SAFE_EXECUTION: NotApplicable(
                "A create is repeated under the same name, in the history."
            ),
            SafetyProfile.BOUNDED_RETRY: NotApplicable(
                "Launches are tried again for as long as runs wait, at the pace of their circuit: giving up would fail "
                "runs for an outage that is not theirs."
            ),
        },
    ),
    derivation=demand,
    retention=retention_of_machines,
    transactional=True,
)


@due_work_contract_suite(MACHINES)
class TestMachines:
    pass
