"""What the end of an attempt is called, by the evidence."""

import signal
from typing import Any

import pytest

from machinequeue.lifecycle import AttemptStatus
from machinequeue.runner import memory, verdict
from machinequeue.runner.channel import Closed
from machinequeue.runner.template import Stuck
from machinequeue.runner.verdict import End

SAID = {
    "status": "failed",
    "error": "builtins.ValueError",
    "traceback": "Traceback …",
    "sentence": "ValueError: no",
    "remedy": "",
    "retry": True,
    "delay": 2.0,
}


def end(**known: Any) -> End:
    usual = {
        "task": "shop.tasks.pack",
        "timeout": 5.0,
        "grace": 10.0,
        "status": None,
        "said": None,
        "interrupted": None,
        "killed": False,
        "starved": False,
        "large": False,
        "memory_mb": 512,
        "peak_mb": 480,
    }
    return End(**{**usual, **known})


SIGKILL, SIGTERM = -signal.SIGKILL, -signal.SIGTERM
TIMED_OUT, CANCELLED = AttemptStatus.TIMED_OUT, AttemptStatus.CANCELLED


@pytest.mark.parametrize(
    ("known", "status", "error", "says"),
    [
        ({"said": SAID}, "failed", "builtins.ValueError", "ValueError: no"),
        ({"status": 3}, "failed", "RunCrashed", "ended without a result (exit code 3)"),
        ({"status": -signal.SIGSEGV, "large": True}, "failed", "RunCrashed", "(killed by SIGSEGV)"),
        ({"status": SIGKILL}, "failed", "RunCrashed", "(killed by SIGKILL)"),
        (
            {"status": SIGKILL, "large": True},
            "out of memory",
            "RunOutOfMemory",
            "ran out of memory at 512 MB (peak 480",
        ),
        ({"status": SIGKILL, "starved": True}, "out of memory", "RunOutOfMemory", "ran out of memory at 512 MB"),
        ({"status": SIGTERM, "starved": True}, "failed", "RunCrashed", "(killed by SIGTERM)"),
        ({"said": SAID, "starved": True}, "out of memory", "RunOutOfMemory", "a process that the task started ran out"),
        ({"said": SAID, "large": True}, "failed", "builtins.ValueError", "ValueError: no"),
        (
            {"interrupted": TIMED_OUT, "status": SIGKILL, "killed": True, "large": True},
            "timed out",
            "RunTimedOut",
            "was",
        ),
        ({"interrupted": TIMED_OUT, "said": SAID}, "timed out", "RunTimedOut", "longer than its timeout of 5 s"),
        (
            {"interrupted": CANCELLED, "said": SAID, "starved": True},
            "cancelled",
            "RunCancelled",
            "cancelled while it ran",
        ),
    ],
)
def test_an_end_has_one_name(known: dict[str, Any], status: str, error: str, says: str) -> None:
    failure = verdict.failure(end(**known))
    assert failure.status == status
    assert failure.error in (error, f"machinequeue.errors.{error}")
    assert says in failure.sentence


def test_the_task_s_own_traceback_is_kept_whatever_the_end_is_called() -> None:
    for known in ({"said": SAID}, {"said": SAID, "starved": True}, {"said": SAID, "interrupted": TIMED_OUT}):
        assert verdict.failure(end(**known)).traceback == "Traceback …"


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (Closed(), "lost", "its template process ended"),
        (KeyError("a bug"), "lost", "its runner failed: KeyError('a bug')"),
        (Stuck("shop.tasks.pack"), "timed out", "the module of task shop.tasks.pack had not been imported after 5 s"),
        (Stuck("shop.slow.other"), "lost", "the module of another task, shop.slow.other, hangs"),
    ],
)
def test_an_attempt_whose_runner_cannot_go_on_says_why(error: Exception, status: str, says: str) -> None:
    failure = verdict.given_up(error, "shop.tasks.pack", 5.0)
    assert failure.status == status
    assert says in failure.sentence


def test_where_the_platform_does_not_say_the_memory_the_sentence_does_not_either() -> None:
    failure = verdict.failure(end(status=SIGKILL, starved=True, memory_mb=0, peak_mb=None))
    assert failure.sentence == "ran out of memory (peak 0 MB)"


@pytest.mark.parametrize(
    ("machine", "peak", "large"),
    [("512", 308, True), ("512", 307, False), ("512", None, False), ("", 10_000, False), ("much", 10_000, False)],
)
def test_a_process_is_large_with_most_of_the_machine_s_memory(
    monkeypatch: pytest.MonkeyPatch, machine: str, peak: int | None, large: bool
) -> None:
    monkeypatch.setenv("FLY_VM_MEMORY_MB", machine)
    assert memory.is_large(peak) is large


def test_the_kernel_s_counters_are_read_where_there_are_any(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 7\nnuma_hit 3\n")
    (tmp_path / "events").write_text("low 0\noom 9\noom_kill 2\noom_group_kill 4\n")
    places = [str(tmp_path / name) for name in ("vmstat", "events", "missing")]
    monkeypatch.setattr(memory, "COUNTERS", places)
    assert memory.kills() == 9
