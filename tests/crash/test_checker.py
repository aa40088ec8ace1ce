"""The checker sees what is wrong. The worlds are made up; each wrong one differs from the right one in one thing."""

import contextlib
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash import checker
from tests.crash.checker import Line, Rows

RUN = str(uuid.UUID(int=7))


class Told:
    """A run that was lost with its machine once and succeeded then: rows, ledger, and what else there is."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {
            "id": RUN,
            "status": "SUCCESSFUL",
            "epoch": 2,
            "lease_expires_at": None,
            "finished_at": "12:05",
            "return_value": f"{RUN}/2",
            "task_attempts": 0,
            "lost_attempts": 1,
            "max_attempts": 1,
        }
        self.first = {"run_id": RUN, "epoch": 1, "status": "lost", "finished_at": "12:02", "machine_id": 1}
        self.last = {"run_id": RUN, "epoch": 2, "status": "succeeded", "finished_at": "12:05", "machine_id": 2}
        self.runs = [self.run]
        self.attempts = [self.first, self.last]
        self.machine = {
            "id": 2,
            "name": "mq-2",
            "status": "gone",
            "queue": "default",
            "reserved_at": "12:00",
            "gone_at": "12:06",
        }
        self.ends: tuple[str, ...] = ("SUCCESSFUL",)
        self.lines = [
            Line("enqueued", RUN, 1, 0.0, ends=self.ends),
            Line("start", RUN, 2, 1.0, epoch=1),
            Line("start", RUN, 3, 2.0, epoch=2),
            Line("end", RUN, 3, 3.0, epoch=2),
        ]
        self.machines: list[dict[str, Any]] = []
        self.processes: list[str] = []

    def judged(self) -> checker.Verdict:
        rows = Rows(self.runs, self.attempts, [self.machine])
        return checker.judge(rows, self.lines, self.machines, self.processes)

    def fails(self, status: str = "FAILED") -> None:
        self.run |= {"status": status, "return_value": None}
        self.last["status"] = "failed"


def test_a_right_world_is_right() -> None:
    verdict = Told().judged()
    assert verdict.good, str(verdict)
    assert (verdict.runs, verdict.executions, verdict.repeated, verdict.overlapped) == (1, 2, 0, 0)
    assert verdict.line == "lost=0 recorded_twice=0 left_behind=0 runs=1"


LOST: dict[str, Callable[[Told], object]] = {
    "no row": lambda told: told.runs.clear(),
    "waits for ever": lambda told: told.run.update(status="READY", finished_at=None, return_value=None),
    "failed though it may not": lambda told: told.fails(),
    "cancelled though nobody asked": lambda told: told.fails("CANCELLED"),
    "a success that nothing executed": lambda told: told.lines.pop(),
}
TWICE: dict[str, Callable[[Told], object]] = {
    "two attempts succeeded": lambda told: told.first.update(status="succeeded"),
    "an older attempt succeeded": lambda told: (
        told.first.update(status="succeeded"),
        told.last.update(status="failed"),
    ),
    "a success without an attempt": lambda told: told.last.update(status="failed"),
    "an attempt without a success": lambda told: told.run.update(status="CANCELLED"),
    "the value of another attempt": lambda told: told.run.update(return_value=f"{RUN}/1"),
    "executed after its success": lambda told: told.lines.append(Line("start", RUN, 9, 4.0, epoch=3)),
    "one attempt executed twice": lambda told: told.lines.append(Line("start", RUN, 9, 4.0, epoch=2)),
}
LEFT: dict[str, Callable[[Told], object]] = {
    "an attempt that runs for ever": lambda told: told.first.update(status="running"),
    "an attempt without an end": lambda told: told.first.update(finished_at=None),
    "a lease that nobody holds": lambda told: told.run.update(lease_expires_at="13:00"),
    "an end without a time": lambda told: told.run.update(finished_at=None),
    "an epoch without an attempt": lambda told: told.attempts.remove(told.first),
    "a machine's row": lambda told: told.machine.update(status="retiring", gone_at=None),
    "a machine": lambda told: told.machines.append({"name": "mq-2", "state": "started"}),
    "a process": lambda told: told.processes.append("17 python of mq-2"),
}


@pytest.mark.parametrize("wrong", LOST.values(), ids=LOST.keys())
def test_a_lost_run_is_seen(wrong: Callable[[Told], object]) -> None:
    told = Told()
    wrong(told)
    assert told.judged().lost
    assert "lost=0" not in told.judged().line


@pytest.mark.parametrize("wrong", TWICE.values(), ids=TWICE.keys())
def test_a_run_recorded_twice_is_seen(wrong: Callable[[Told], object]) -> None:
    told = Told()
    wrong(told)
    assert told.judged().recorded_twice


@pytest.mark.parametrize("wrong", LEFT.values(), ids=LEFT.keys())
def test_what_is_left_behind_is_seen(wrong: Callable[[Told], object]) -> None:
    told = Told()
    wrong(told)
    assert told.judged().left_behind


def test_a_run_may_end_as_its_enqueuer_said() -> None:
    told = Told()
    told.fails()
    told.lines = [Line("enqueued", RUN, 1, 0.0, ends=("FAILED",)), *told.lines[1:3]]
    assert told.judged().good


def test_a_run_may_fail_when_its_budget_is_spent_and_that_is_counted() -> None:
    told = Told()
    told.fails()
    told.run["lost_attempts"] = 3
    assert told.judged().good
    assert told.judged().given_up == 1


def test_who_enqueued_and_died_promised_a_success_all_the_same() -> None:
    told = Told()
    told.fails()
    del told.lines[0]
    assert told.judged().lost


def test_executions_that_were_not_recorded_or_overlap_are_counted() -> None:
    told = Told()
    told.lines.append(Line("end", RUN, 2, 2.5, epoch=1))
    assert (told.judged().good, told.judged().repeated, told.judged().overlapped) == (True, 1, 1)


def test_rows_and_ledger_are_read_as_they_are_written(tmp_path: Path) -> None:
    database, ledger = tmp_path / "rows.sqlite3", tmp_path / "ledger.jsonl"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for statement in (checker.RUNS, checker.ATTEMPTS, checker.MACHINES):
            columns, _, table = statement.replace("SELECT", "").partition("FROM")
            connection.execute(f"CREATE TABLE {table} ({columns})")
        told = Told()
        run = {**told.run, "id": uuid.UUID(RUN).hex, "return_value": f'"{RUN}/2"'}
        connection.execute(f"INSERT INTO machinequeue_taskrun VALUES ({','.join('?' * len(run))})", [*run.values()])
        for attempt in told.attempts:
            values = {**attempt, "run_id": uuid.UUID(RUN).hex}.values()
            connection.execute("INSERT INTO machinequeue_attempt VALUES (?,?,?,?,?)", [*values])
        connection.execute("INSERT INTO machinequeue_machine VALUES (?,?,?,?,?,?)", [*told.machine.values()])
        connection.commit()
    ledger.write_text(
        f'{{"what":"enqueued","run":"{RUN}","pid":1,"at":0.0,"ends":["SUCCESSFUL"]}}\n'
        f'{{"what":"start","run":"{RUN}","pid":2,"at":1.0,"epoch":1}}\n'
        f'{{"what":"start","run":"{RUN}","pid":3,"at":2.0,"epoch":2}}\n'
        f'{{"what":"end","run":"{RUN}","pid":3,"at":3.0,"epoch":2}}\n'
    )
    rows = checker.read_rows(f"sqlite://{database}")
    assert (rows.runs, rows.attempts, rows.machines) == ([told.run], told.attempts, [told.machine])
    assert checker.read_ledger(ledger) == told.lines
    assert checker.read_ledger(tmp_path / "none") == []


def test_machines_at_once_are_counted_by_rows_and_by_the_journal() -> None:
    spans = [("a", "12:00", "12:02"), ("b", "12:01", "12:03"), ("a", "12:02", "12:04"), ("a", "12:03", None)]
    machines = [{"queue": queue, "reserved_at": begin, "gone_at": end} for queue, begin, end in spans]
    assert checker.most_at_once(Rows([], [], machines)) == {"": 2, "a": 2, "b": 1}
    journal = [
        {"at": 1, "type": "launch"},
        {"at": 2, "type": "launch"},
        {"at": 3, "type": "destroy", "status": "destroying"},
        {"at": 4, "type": "destroy", "status": "destroyed"},
        {"at": 5, "type": "launch"},
        {"at": 6, "kind": "request"},
    ]
    assert checker.most_alive_at_once(journal) == 2
