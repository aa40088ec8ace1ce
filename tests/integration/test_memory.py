"""Runs that ran out of memory get a bigger machine; what was learned applies to runs that wait, and is forgotten."""

import uuid
from typing import Any

import pytest

from machinequeue import conf
from machinequeue.lifecycle import AttemptStatus, Failure
from machinequeue.models import TaskProfile, TaskRun
from machinequeue.records import claims, profiles, runs
from machinequeue.runner.life import Tally
from tests.integration.conftest import checked_in, claim, claimed
from tests.workshop import tasks

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("woken")]

TASK = "tests.workshop.tasks.add"
TOO_LITTLE = Failure(AttemptStatus.OUT_OF_MEMORY, sentence="ran out of memory at 512 MB on 91857e1a")


def run_out(result: Any) -> claims.Claim:
    held = claimed(result)
    assert claims.fail(held.run_id, held.epoch, TOO_LITTLE, claims.Report())
    return held


def row(result: Any) -> TaskRun:
    return TaskRun.objects.get(pk=result.id)


def test_a_run_that_ran_out_of_memory_gets_twice_as_much() -> None:
    result = tasks.add.enqueue(1)
    before = row(result)
    run_out(result)
    after = row(result)
    assert (after.status, after.spec["memory_mb"], after.spec["cpus"]) == ("READY", 1024, 1)
    assert after.spec_key == conf.spec_key(after.spec) != before.spec_key
    assert (after.task_attempts, after.lost_attempts) == (0, 0)
    assert after.reason.startswith("ran out of memory at 512 MB on 91857e1a; retrying with 1024 MB in ")


def test_the_largest_size_is_the_end() -> None:
    result = tasks.add.using(max_memory_mb=512).enqueue(1)
    run_out(result)
    after = row(result)
    assert after.status == "FAILED"
    assert after.reason.endswith("; 512 MB is the most that the run may have (max_memory_mb)")
    assert not TaskProfile.objects.filter(memory_mb__isnull=False).exists()


def test_more_memory_comes_with_more_cpus_where_fly_sells_it_so() -> None:
    spec = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 2048, "max_memory_mb": 8192}
    assert conf.bigger(spec) == {**spec, "cpus": 2, "memory_mb": 4096}
    assert conf.bigger({**spec, "memory_mb": 1536, "max_memory_mb": 1792}) == {
        **spec,
        "memory_mb": 1792,
        "max_memory_mb": 1792,
    }
    assert conf.bigger({**spec, "max_memory_mb": 2048}) is None
    most = {"cpu_kind": "shared", "cpus": 8, "memory_mb": 16384, "max_memory_mb": 99999}
    assert conf.bigger(most) is None


def test_every_size_ends_in_one_that_fly_sells() -> None:
    for kind, (counts, low, high) in conf.GUESTS.items():
        for cpus in counts:
            for memory in range(low * cpus, high * cpus + 1, 256):
                spec: dict[str, Any] | None = {
                    "cpu_kind": kind,
                    "cpus": cpus,
                    "memory_mb": memory,
                    "max_memory_mb": counts[-1] * high,
                }
                for _ in range(20):
                    larger = conf.bigger(spec) if spec else None
                    if larger is None:
                        break
                    assert larger["memory_mb"] > spec["memory_mb"]  # type: ignore[index]
                    assert conf.guest_problem(kind, larger["cpus"], larger["memory_mb"]) is None
                    spec = larger
                assert spec is not None
                assert spec["memory_mb"] == counts[-1] * high


def test_runs_that_wait_get_what_was_learned_and_a_small_machine_leaves_them() -> None:
    first, waiting, small = tasks.add.enqueue(1), tasks.add.enqueue(2), tasks.add.using(max_memory_mb=512).enqueue(3)
    by = checked_in(first)
    held = claim(by)
    assert held is not None
    claims.fail(held.run_id, held.epoch, TOO_LITTLE, claims.Report())
    got = claim(by)
    assert got is not None
    assert got.run_id == uuid.UUID(small.id), "the other has room to grow, so it waits for a bigger machine"
    assert claim(by) is None
    assert profiles.fit() == 1
    assert row(waiting).spec["memory_mb"] == 1024
    assert row(waiting).spec_key == row(first).spec_key
    assert profiles.fit() == 0
    later = tasks.add.enqueue(4)
    assert profiles.fit() == 1
    assert row(later).spec["memory_mb"] == 1024


def test_a_run_never_gets_more_than_it_may_have() -> None:
    TaskProfile.objects.create(task=TASK, run_seconds=1, memory_mb=8192, outgrown_mb=4096)
    result = tasks.add.using(max_memory_mb=1536).enqueue(1)
    profiles.fit()
    assert row(result).spec["memory_mb"] == 1536
    assert claimed(result).run_id == uuid.UUID(result.id)


def test_what_was_learned_is_forgotten_when_peaks_stay_low() -> None:
    run_out(tasks.add.enqueue(1))
    profiles.learn(TASK, 19, 19.0, 200)
    profiles.learn(TASK, 1, 1.0, 400)  # would not have fitted beside the supervisor
    profiles.learn(TASK, 19, 19.0, 200)
    assert TaskProfile.objects.get().memory_mb == 1024
    profiles.learn(TASK, 1, 1.0, 200)
    assert TaskProfile.objects.get().memory_mb is None
    later = tasks.add.enqueue(2)
    profiles.fit()
    assert row(later).spec["memory_mb"] == 512


def test_what_was_learned_can_be_forgotten_by_hand() -> None:
    run_out(tasks.add.enqueue(1))
    assert profiles.forget_memory(TASK)
    assert not profiles.forget_memory(TASK)


def test_two_losses_in_turn_keep_the_larger_size() -> None:
    result = tasks.add.using(max_memory_mb=4096).enqueue(1)
    run_out(result)
    TaskRun.objects.update(run_after=runs.database_now())
    run_out(result)
    assert TaskProfile.objects.get().memory_mb == 2048
    profiles.outgrew(TASK, {"memory_mb": 256}, 512)
    assert TaskProfile.objects.get().memory_mb == 2048


def test_a_tally_forgets_what_it_has_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(profiles, "learn", lambda *given: told.append(given))
    tally = Tally()
    for peak in (500, 10):
        tally.add(TASK, claims.Report(seconds=1.0, peak_memory_mb=peak))
        tally.learn()
    assert told == [(TASK, 1, 1.0, 500), (TASK, 1, 1.0, 10)]
