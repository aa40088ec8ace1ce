"""What follows a failure, as a table and as properties."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machinequeue import lifecycle
from machinequeue.lifecycle import (
    INFRASTRUCTURE_BUDGET,
    AttemptStatus,
    CircuitKind,
    Failure,
    Room,
    RunStatus,
    after_failure,
)


def decide(status: AttemptStatus, /, **given: Any) -> lifecycle.Decision:
    charged = {name: given.pop(name, 0) for name in ("task_attempts", "lost_attempts")}
    allowed, cancelled = given.pop("max_attempts", 3), given.pop("cancelled", False)
    room = given.pop("room", Room())
    failure = Failure(status, sentence="it broke", **given)
    return after_failure(failure, **charged, max_attempts=allowed, cancelled=cancelled, room=room, rng=lambda: 1.0)


TABLE: list[tuple[str, AttemptStatus, dict[str, Any], RunStatus, int, int, float]] = [
    # what it is, how it ended, what is known, → status, task attempts, lost attempts, delay
    ("a first error of three", AttemptStatus.FAILED, {}, RunStatus.READY, 1, 0, 5),
    ("a second error of three", AttemptStatus.FAILED, {"task_attempts": 1}, RunStatus.READY, 2, 0, 10),
    ("the last error", AttemptStatus.FAILED, {"task_attempts": 2}, RunStatus.FAILED, 3, 0, 0),
    ("the only attempt", AttemptStatus.FAILED, {"max_attempts": 1}, RunStatus.FAILED, 1, 0, 0),
    ("an error that no retry helps", AttemptStatus.FAILED, {"retry": False}, RunStatus.FAILED, 1, 0, 0),
    ("an error with the task's own delay", AttemptStatus.FAILED, {"delay": 42.0}, RunStatus.READY, 1, 0, 42),
    ("a negative delay", AttemptStatus.FAILED, {"delay": -1.0}, RunStatus.READY, 1, 0, 0),
    ("a timeout is final", AttemptStatus.TIMED_OUT, {}, RunStatus.FAILED, 1, 0, 0),
    ("a timeout that the task wants retried", AttemptStatus.TIMED_OUT, {"retry": True}, RunStatus.READY, 1, 0, 5),
    ("out of memory with room", AttemptStatus.OUT_OF_MEMORY, {"room": Room(512, 1024)}, RunStatus.READY, 0, 0, 5),
    ("out of memory without", AttemptStatus.OUT_OF_MEMORY, {"room": Room(1024, None)}, RunStatus.FAILED, 1, 0, 0),
    ("nobody's fault", AttemptStatus.INTERRUPTED, {"charged": False}, RunStatus.READY, 0, 0, 0),
    (
        "nobody's fault, cancelled",
        AttemptStatus.FAILED,
        {"charged": False, "cancelled": True},
        RunStatus.CANCELLED,
        0,
        0,
        0,
    ),
    ("a lost machine", AttemptStatus.LOST, {}, RunStatus.READY, 0, 1, 0),
    ("a lost machine, one attempt allowed", AttemptStatus.LOST, {"max_attempts": 1}, RunStatus.READY, 0, 1, 0),
    ("an interrupted machine", AttemptStatus.INTERRUPTED, {"task_attempts": 1}, RunStatus.READY, 1, 1, 0),
    ("poison", AttemptStatus.LOST, {"lost_attempts": 2}, RunStatus.FAILED, 0, 3, 0),
    ("poison by interruptions", AttemptStatus.INTERRUPTED, {"lost_attempts": 2}, RunStatus.FAILED, 0, 3, 0),
    ("a cancelled attempt", AttemptStatus.CANCELLED, {}, RunStatus.CANCELLED, 0, 0, 0),
    ("an error after a cancel was asked", AttemptStatus.FAILED, {"cancelled": True}, RunStatus.CANCELLED, 0, 0, 0),
    ("a lost machine after a cancel was asked", AttemptStatus.LOST, {"cancelled": True}, RunStatus.CANCELLED, 0, 0, 0),
]


@pytest.mark.parametrize(
    ("status", "known", "to", "task_attempts", "lost_attempts", "delay"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_what_follows_a_failure(
    status: AttemptStatus, known: dict[str, Any], to: RunStatus, task_attempts: int, lost_attempts: int, delay: float
) -> None:
    decision = decide(status, **known)
    assert (decision.status, decision.task_attempts, decision.lost_attempts, decision.delay) == (
        to,
        task_attempts,
        lost_attempts,
        delay,
    )


def test_every_decision_says_why() -> None:
    assert decide(AttemptStatus.FAILED).reason == "attempt 1 of 3: it broke; retrying in 5 s"
    assert decide(AttemptStatus.FAILED, task_attempts=2).reason == "it broke; all 3 attempts are used"
    assert decide(AttemptStatus.FAILED, max_attempts=1).reason == "it broke"
    assert decide(AttemptStatus.LOST).reason == "it broke; starting again"
    assert "given up after 3 attempts lost" in decide(AttemptStatus.LOST, lost_attempts=2).reason
    assert decide(AttemptStatus.FAILED, cancelled=True).reason == "cancelled on request"


failures = st.builds(
    Failure,
    st.sampled_from([status for status in AttemptStatus if status not in ("running", "succeeded")]),
    sentence=st.text(max_size=20),
    retry=st.booleans(),
    delay=st.none() | st.floats(-1e6, 1e6),
)
draws = st.floats(0, 1, exclude_max=True)


@given(failures, st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.booleans(), draws)
def test_a_decision_is_always_a_legal_transition_with_bounded_numbers(
    failure: Failure, task_attempts: int, lost_attempts: int, max_attempts: int, cancelled: bool, draw: float
) -> None:
    decision = after_failure(
        failure,
        task_attempts=task_attempts,
        lost_attempts=lost_attempts,
        max_attempts=max_attempts,
        cancelled=cancelled,
        rng=lambda: draw,
    )
    assert lifecycle.may(RunStatus.RUNNING, decision.status)
    assert decision.reason
    assert decision.delay >= 0
    charged = (decision.task_attempts - task_attempts) + (decision.lost_attempts - lost_attempts)
    wants_cancel = cancelled or failure.status == AttemptStatus.CANCELLED
    assert (decision.status == RunStatus.CANCELLED) == wants_cancel, "a requested cancel wins over every retry"
    assert charged == (0 if wants_cancel else 1), "every other failure is charged to exactly one budget"
    if decision.status == RunStatus.READY:
        assert decision.task_attempts < max_attempts or decision.task_attempts == task_attempts
        assert decision.lost_attempts < INFRASTRUCTURE_BUDGET or decision.lost_attempts == lost_attempts
    else:
        assert decision.delay == 0


@given(st.lists(failures, min_size=20, max_size=60), st.integers(1, 9))
def test_any_history_of_failures_ends_within_both_budgets(history: list[Failure], max_attempts: int) -> None:
    task_attempts = lost_attempts = taken = 0
    for failure in history:
        taken += 1
        decision = after_failure(
            failure,
            task_attempts=task_attempts,
            lost_attempts=lost_attempts,
            max_attempts=max_attempts,
            cancelled=False,
        )
        task_attempts, lost_attempts = decision.task_attempts, decision.lost_attempts
        if decision.status != RunStatus.READY:
            break
    assert decision.status in lifecycle.FINISHED
    assert task_attempts <= max_attempts
    assert lost_attempts <= INFRASTRUCTURE_BUDGET
    assert taken <= max_attempts + INFRASTRUCTURE_BUDGET - 1


@given(st.integers(1, 1000), draws)
def test_the_pause_doubles_is_jittered_and_has_an_end(attempt: int, draw: float) -> None:
    longest = min(lifecycle.BACKOFF_FIRST * 2.0 ** (attempt - 1), lifecycle.BACKOFF_LONGEST)
    assert longest / 2 <= lifecycle.backoff(attempt, lambda: draw) <= longest


def test_the_jitter_spreads() -> None:
    assert len({lifecycle.backoff(3) for _ in range(50)}) > 40


def test_no_status_is_a_trap_and_success_is_final() -> None:
    assert set(lifecycle.TRANSITIONS) == set(RunStatus)
    assert lifecycle.TRANSITIONS[RunStatus.SUCCESSFUL] == frozenset()
    for status in RunStatus:
        if status not in lifecycle.FINISHED:
            assert lifecycle.TRANSITIONS[status] & lifecycle.FINISHED
    assert not lifecycle.may(RunStatus.READY, RunStatus.SUCCESSFUL), "nothing succeeds without being claimed"
    assert not lifecycle.may(RunStatus.RUNNING, RunStatus.EXPIRED), "what has started does not expire"


def test_every_way_of_ending_has_a_rule() -> None:
    ends = set(AttemptStatus) - {AttemptStatus.RUNNING, AttemptStatus.SUCCEEDED}
    assert set(lifecycle.RULES) == ends
    assert set(lifecycle.PATIENCE) == set(CircuitKind)


def test_out_of_memory_says_what_comes_next() -> None:
    decision = decide(AttemptStatus.OUT_OF_MEMORY, room=Room(512, 1024))
    assert decision.bigger
    assert decision.reason == "it broke; retrying with 1024 MB in 5 s"
    assert not decide(AttemptStatus.OUT_OF_MEMORY, room=Room(1024, None)).bigger


@pytest.mark.parametrize(
    ("kind", "failures", "is_open", "seconds"),
    [
        (CircuitKind.BOOT, 1, False, 5.0),
        (CircuitKind.BOOT, 4, False, 40.0),
        (CircuitKind.BOOT, 5, True, 600.0),
        (CircuitKind.BOOT, 50, True, 600.0),
        (CircuitKind.TOKEN, 1, True, 30.0),
    ],
)
def test_a_circuit_opens_after_some_failures(kind: CircuitKind, failures: int, is_open: bool, seconds: float) -> None:
    assert lifecycle.pause(kind, failures, rng=lambda: 1.0) == (is_open, seconds)
