"""How values read."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from machinequeue.admin import search, timings, wording
from machinequeue.lifecycle import AttemptStatus, MachineStatus, RunStatus
from machinequeue.models import Attempt, Machine, TaskRun

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (-3, "0 ms"),
        (0, "0 ms"),
        (0.0004, "0 ms"),
        (0.34, "340 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (4.25, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (65, "1 min 05 s"),
        (600, "10 min"),
        (3599.6, "1 h"),
        (3600 + 61, "1 h 01 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d"),
        (4 * 86400 + 3 * 3600, "4 d 3 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize("status", [*RunStatus, *AttemptStatus, *MachineStatus])
def test_every_status_has_a_look(status: str) -> None:
    model: Any = {RunStatus: TaskRun, AttemptStatus: Attempt, MachineStatus: Machine}[type(status)]
    badge = wording.status(model(status=status))
    assert f">{status.label}<" in badge  # type: ignore[attr-defined]
    assert status in wording._LOOKS


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (None, "–"),
        ({}, "–"),
        ({"exit_code": 0}, "exit code 0"),
        ({"exit_code": 0, "signal": -1}, "exit code 0"),
        ({"exit_code": 137, "oom_killed": True}, "out of memory"),
        ({"exit_code": 0, "requested_stop": True}, "exit code 0, was asked to stop"),
        ({"exit_code": 143, "signal": 15}, "signal 15, exit code 143"),
        ({"exit_code": None, "error": "host unreachable"}, "host unreachable"),
        ({"exit_code": None}, "ended"),
    ],
)
def test_exit(event: dict[str, Any] | None, text: str) -> None:
    assert wording.exit_in_words(event) == text


def test_one_line() -> None:
    assert wording.one_line("short") == "short"
    assert wording.one_line(" \n ") == ""
    assert wording.one_line("first\n<second>") == '<span title="first\n&lt;second&gt;">first</span>'
    assert len(wording.one_line("x" * 500).partition(">")[2].partition("<")[0]) == 110


def test_json() -> None:
    assert ">[1, &quot;ü&quot;]<" in wording.pretty([1, "ü"])
    assert wording.pretty(list(range(40))).count("\n") == 41
    assert "&lt;/pre&gt;" in wording.pretty("</pre>")


def test_stages_in_the_order_of_time() -> None:
    assert wording.stages({"a": 2.0, "bb": 0.5}) == "bb 500 ms, a 2.0 s"


def test_clock() -> None:
    assert ">11:59:59<" in wording.clock(at(-1), NOON)
    assert ">2026-02-28 11:00<" in wording.clock(at(-25 * 3600), NOON)


def run(**values: Any) -> TaskRun:
    return TaskRun(**{"enqueued_at": NOON, "run_after": NOON, "status": RunStatus.READY, "started_at": None, **values})


@pytest.mark.parametrize(
    ("row", "seconds"),
    [
        (run(), 100),
        (run(run_after=at(160)), -60),
        (run(status=RunStatus.RUNNING, started_at=at(4)), 4),
        (run(status=RunStatus.RUNNING, run_after=at(50), started_at=at(53)), 3),
        # A retry moved run_after beyond the first start.
        (run(status=RunStatus.RUNNING, run_after=at(90), started_at=at(4)), 4),
        (run(run_after=at(90), started_at=at(4)), 10),
        (run(status=RunStatus.CANCELLED, finished_at=at(7)), 7),
        (run(status=RunStatus.CANCELLED, run_after=at(60), finished_at=at(7)), 0),
    ],
)
def test_waited(row: TaskRun, seconds: float) -> None:
    assert timings.waited(row, at(100)) == seconds


@pytest.mark.parametrize(
    ("status", "charged", "epoch", "number"),
    [
        (RunStatus.READY, 0, 0, 0),
        (RunStatus.RUNNING, 0, 1, 1),
        (RunStatus.READY, 1, 1, 1),
        (RunStatus.RUNNING, 1, 2, 2),
        (RunStatus.SUCCESSFUL, 1, 2, 2),
        (RunStatus.FAILED, 3, 3, 3),
        (RunStatus.FAILED, 3, 9, 3),  # retried by hand before
        (RunStatus.CANCELLED, 0, 0, 0),
        (RunStatus.CANCELLED, 0, 1, 1),
    ],
)
def test_attempt_number(status: str, charged: int, epoch: int, number: int) -> None:
    assert timings.attempt_number(TaskRun(status=status, task_attempts=charged, epoch=epoch)) == number


def test_ran() -> None:
    assert timings.ran(Attempt(seconds=1.5, claimed_at=NOON, finished_at=at(3)), at(9)) == 1.5
    assert timings.ran(Attempt(claimed_at=NOON, finished_at=at(3)), at(9)) == 3
    assert timings.ran(Attempt(claimed_at=NOON), at(9)) == 9


@pytest.mark.parametrize("word", ["g", "xyz", "0" * 33, "é", "make_receipt"])
def test_what_cannot_start_an_id_is_looked_for_in_tasks(word: str) -> None:
    assert search.run_matches(word).children == [("task__icontains", word)]


@pytest.mark.parametrize("word", ["01a1fc98", "01A1FC98-2419-71a7-95fb-42768681e015"])
def test_what_is_surely_an_id_asks_the_index_only(word: str) -> None:
    assert [name for name, _ in search.run_matches(word).children] == ["pk__gte", "pk__lte"]
