"""Memory: what a run took is known, and a run that took too much is told from one that crashed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machinequeue.models import Machine, TaskProfile
from tests.waiting import until
from tests.workshop import tasks
from tests.world import World

GROUPS = Path("/sys/fs/cgroup")


def first_of(result: Any) -> dict[str, Any]:
    result.refresh()
    attempt: dict[str, Any] = result.history[0]
    return attempt


@pytest.fixture(autouse=True)
def _no_experience(shop: World) -> None:
    """Nothing is known yet of how much memory the tasks need."""
    TaskProfile.objects.all().delete()


# Out of memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["process", "shared"])
def test_a_task_that_takes_more_memory_than_its_machine_has_ran_out_of_memory(shop: World, isolation: str) -> None:
    result = tasks.hungry.using(memory_mb=256, isolation=isolation).enqueue(2000)
    shop.finish(result, seconds=60)
    attempt = first_of(result)
    assert (attempt["status"], attempt["error"]) == ("out of memory", "machinequeue.errors.RunOutOfMemory")
    assert result.errors[0].exception_class_path == "machinequeue.errors.RunOutOfMemory"
    assert attempt["peak_memory_mb"] > 0.6 * 256
    said = attempt["diagnosis"]
    assert said["sentence"] == f"ran out of memory at 256 MB (peak {attempt['peak_memory_mb']} MB)"
    assert said["category"] == "out of memory"
    assert "memory_mb" in said["remedy"]


def test_a_small_process_that_is_killed_has_crashed_and_its_peak_is_known(shop: World) -> None:
    result = tasks.killed.using(memory_mb=256).enqueue()
    shop.finish(result)
    attempt = first_of(result)
    assert (attempt["status"], attempt["error"]) == ("failed", "machinequeue.errors.RunCrashed")
    assert 10 < attempt["peak_memory_mb"] < 0.6 * 256
    assert "(killed by SIGKILL)" in attempt["diagnosis"]["sentence"]


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group in which the kernel allows 64 MB."""
    one, limit = (GROUPS / "memory", "memory.limit_in_bytes"), "memory.max"
    root, file = one if one[0].is_dir() else (GROUPS, limit)
    group = root / f"mq-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / file).write_text(str(64 << 20))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"control groups are not ours to make: {error}")
    yield group
    group.rmdir()


@pytest.mark.parametrize("whose", ["its own", "a child's"])
def test_whom_the_kernel_kills_for_memory_is_told_by_its_counter(shop: World, small_group: Path, whose: str) -> None:
    result = tasks.starved_in_a_group.enqueue(str(small_group), 400, whose)
    shop.finish(result, seconds=60)
    attempt = first_of(result)
    assert attempt["status"] == "out of memory"
    assert attempt["peak_memory_mb"] < 0.6 * 512, "by size alone it would not have been told"
    own = f"ran out of memory at 512 MB (peak {attempt['peak_memory_mb']} MB)"
    assert attempt["diagnosis"]["sentence"] == (own if whose == "its own" else f"a process that the task started {own}")
    assert ("CalledProcessError" in result.errors[0].traceback) == (whose == "a child's")


# Peaks --------------------------------------------------------------------------------------------------------------


def test_the_peak_of_a_run_is_its_own_in_a_process_that_others_share(shop: World) -> None:
    shared = {"isolation": "shared", "queue_name": "warm", "memory_mb": 1024}

    def one(task: Any, *args: Any) -> Any:
        # One at a time, for a machine that waits: a busy one would be given company.
        result = task.using(**shared).enqueue(*args)
        shop.finish(result)
        until(lambda: Machine.objects.filter(queue="warm", status="idle").exists(), 60, shop.said)
        return result

    big, children, small = one(tasks.hungry, 100), one(tasks.hungry_child, 160), one(tasks.whoami)
    assert first_of(big)["pid"] == first_of(children)["pid"] == first_of(small)["pid"]
    assert 110 < first_of(big)["peak_memory_mb"] < 220
    assert 160 < first_of(children)["peak_memory_mb"] < 220, "its child's, which was larger than itself"
    assert first_of(small)["peak_memory_mb"] < 90, "neither what ran before in its process, nor its children"


def test_children_that_hold_memory_at_the_same_time_count_together(shop: World) -> None:
    result = tasks.hungry_family.enqueue(60, 3)
    shop.finish(result)
    assert 3 * 60 < first_of(result)["peak_memory_mb"] < 3 * 60 + 120
