"""Judge from outside whether a run was lost, recorded twice, or left something behind.

Knows nothing of machinequeue's code: it reads the ledger that tasks wrote (see tests/workshop/ledger.py), the tables by
plain SQL, the list of the Machines API by plain HTTP, and the table of processes.
"""

import contextlib
import itertools
import json
import sqlite3
import urllib.request
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg

FINISHED = {"SUCCESSFUL", "FAILED", "CANCELLED", "EXPIRED"}
INFRASTRUCTURE_BUDGET = 3
"""Attempts lost with their machines after which a run may be given up."""

RUNS = """
SELECT id, status, epoch, lease_expires_at, finished_at, return_value, task_attempts, lost_attempts, max_attempts
FROM machinequeue_taskrun"""
ATTEMPTS = "SELECT run_id, epoch, status, finished_at, machine_id FROM machinequeue_attempt"
MACHINES = "SELECT id, name, status, queue, reserved_at, gone_at FROM machinequeue_machine"


# --- What is there ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The tables, each a list of dicts; ids of runs are texts with dashes, JSON is parsed."""

    runs: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    machines: list[dict[str, Any]]


@dataclass(frozen=True)
class Line:
    """A line of the ledger."""

    what: str
    run: str
    pid: int
    at: float
    epoch: int = 0
    ends: tuple[str, ...] = ()


def read_rows(url: str) -> Rows:
    """The rows of the database at this URL (postgresql:// or sqlite://)."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        with contextlib.closing(sqlite3.connect(parts.path, timeout=30)) as connection:
            tables = [_fetch(connection.cursor(), statement) for statement in (RUNS, ATTEMPTS, MACHINES)]
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            tables = [_fetch(connection.cursor(), statement) for statement in (RUNS, ATTEMPTS, MACHINES)]
    runs, attempts, machines = tables
    for run in runs:
        run["id"] = _key(run["id"])
        run["return_value"] = _parsed(run["return_value"])
    for attempt in attempts:
        attempt["run_id"] = _key(attempt["run_id"])
    return Rows(runs, attempts, machines)


def _fetch(cursor: Any, statement: str) -> list[dict[str, Any]]:
    cursor.execute(statement)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _key(value: Any) -> str:
    return str(value if isinstance(value, uuid.UUID) else uuid.UUID(value))


def _parsed(value: Any) -> Any:
    # psycopg hands JSON over parsed, sqlite3 as text.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def read_ledger(path: Path) -> list[Line]:
    """The lines so far."""
    if not path.exists():
        return []
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return [Line(**{**line, "ends": tuple(line.get("ends", ()))}) for line in lines]


def read_machines(api_url: str, app: str, token: str) -> list[dict[str, Any]]:
    """The machines that the API still has: not destroyed, and launched by machinequeue."""
    request = urllib.request.Request(  # noqa: S310 - an address on loopback
        f"{api_url}/v1/apps/{app}/machines", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - the same
        listed = json.load(answer)
    ours = [each for each in listed if "mq_machine" in (_config_of(each).get("metadata") or {})]
    return [each for each in ours if each["state"] != "destroyed"]


def _config_of(machine: dict[str, Any]) -> dict[str, Any]:
    return machine.get("config") or machine.get("incomplete_config") or {}


def read_processes(database_url: str) -> list[str]:
    """The processes that belong to machines of this database, known by their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("MACHINEQUEUE_MACHINE") and environment.get("DATABASE_URL") == database_url:
                found.append(f"{process.pid} {process.name()} of {environment['MACHINEQUEUE_MACHINE']}")
    return found


# --- What it means ---------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """Sentences about what went wrong, and counts of what may happen."""

    lost: list[str] = field(default_factory=list)
    """Committed enqueues without a right end."""
    recorded_twice: list[str] = field(default_factory=list)
    """Runs for which more than the last attempt counts."""
    left_behind: list[str] = field(default_factory=list)
    """Machines, processes, and rows that nothing will change any more."""
    runs: int = 0
    executions: int = 0
    repeated: int = 0
    """Executions that ended well but were not recorded, since their machine died in between: at least once."""
    overlapped: int = 0
    """Executions of a run that began before an earlier one had ended, by its own word."""
    given_up: int = 0
    """Runs that failed because their machines died too often."""

    @property
    def good(self) -> bool:
        return not (self.lost or self.recorded_twice or self.left_behind)

    @property
    def line(self) -> str:
        return (
            f"lost={len(self.lost)} recorded_twice={len(self.recorded_twice)} left_behind={len(self.left_behind)} "
            f"runs={self.runs}"
        )

    def __str__(self) -> str:
        return "\n".join([self.line, *self.lost, *self.recorded_twice, *self.left_behind])


@dataclass
class _Story:
    """What rows and ledger tell of one run."""

    run: dict[str, Any]
    attempts: list[dict[str, Any]]
    starts: dict[int, float]
    ends: dict[int, float]
    doubled: list[int]
    """Epochs that were executed more than once."""
    may_end: tuple[str, ...]

    @property
    def name(self) -> str:
        told = ", ".join(f"{each['epoch']} {each['status']}" for each in self.attempts)
        run = self.run
        return f"run {run['id']} ({run['status']}, epoch {run['epoch']}; attempts {told or 'none'})"

    @property
    def succeeded(self) -> list[int]:
        return [each["epoch"] for each in self.attempts if each["status"] == "succeeded"]

    @property
    def given_up(self) -> bool:
        lost = self.run["lost_attempts"] >= INFRASTRUCTURE_BUDGET
        return self.run["status"] == "FAILED" and "FAILED" not in self.may_end and lost


def judge(
    rows: Rows,
    ledger: Iterable[Line],
    machines: Iterable[dict[str, Any]] = (),
    processes: Iterable[str] = (),
) -> Verdict:
    """What is wrong with a world in which everything has been said and done."""
    lines = list(ledger)
    stories = _stories(rows, lines)
    verdict = Verdict(runs=len(stories), executions=sum(line.what == "start" for line in lines))
    known = {run["id"] for run in rows.runs}
    for run in sorted({line.run for line in lines} - known):
        verdict.lost.append(f"run {run} is in the ledger and has no row")
    for story in stories:
        verdict.lost += _lost(story)
        verdict.recorded_twice += _recorded_twice(story)
        verdict.left_behind += _stuck(story)
        verdict.repeated += len(set(story.ends) - set(story.succeeded))
        verdict.overlapped += _overlaps(story)
        verdict.given_up += story.given_up
    verdict.left_behind += [
        f"machine {each['name']} is {each['status']} by its row" for each in rows.machines if each["status"] != "gone"
    ]
    verdict.left_behind += [f"machine {each['name']} is {each['state']} by the API" for each in machines]
    verdict.left_behind += [f"process {each} is alive" for each in processes]
    return verdict


def _stories(rows: Rows, lines: list[Line]) -> list[_Story]:
    attempts = defaultdict(list)
    for attempt in sorted(rows.attempts, key=lambda each: each["epoch"]):
        attempts[attempt["run_id"]].append(attempt)
    starts: dict[str, dict[int, float]] = defaultdict(dict)
    ends: dict[str, dict[int, float]] = defaultdict(dict)
    doubled = defaultdict(list)
    may_end = {}
    for line in lines:
        if line.what == "enqueued":
            may_end[line.run] = line.ends
        elif line.what == "end":
            ends[line.run][line.epoch] = line.at
        else:
            doubled[line.run] += [line.epoch] if line.epoch in starts[line.run] else []
            starts[line.run][line.epoch] = line.at
    # Who enqueued and died at once could not note it: the row is a promise all the same.
    return [
        _Story(run, attempts[key], starts[key], ends[key], doubled[key], may_end.get(key, ("SUCCESSFUL",)))
        for run in rows.runs
        for key in [run["id"]]
    ]


def _lost(story: _Story) -> list[str]:
    run, name = story.run, story.name
    if run["status"] not in FINISHED:
        return [f"{name} never ended"]
    if run["status"] not in story.may_end and not story.given_up:
        return [f"{name} should have ended as {' or '.join(story.may_end)}"]
    if run["status"] == "SUCCESSFUL" and run["epoch"] not in story.ends:
        return [f"{name} is recorded as a success that the ledger knows nothing of"]
    return []


def _recorded_twice(story: _Story) -> list[str]:
    run, name, succeeded = story.run, story.name, story.succeeded
    if len(succeeded) > 1:
        return [f"{name} has succeeded in attempts {succeeded}"]
    if run["status"] == "SUCCESSFUL" and succeeded != [run["epoch"]]:
        return [f"{name} is a success, but not that of its last attempt"]
    if run["status"] != "SUCCESSFUL" and succeeded:
        return [f"{name} has an attempt that succeeded and is none itself"]
    if run["status"] == "SUCCESSFUL" and run["return_value"] != f"{run['id']}/{run['epoch']}":
        return [f"{name} holds the result of another attempt: {run['return_value']!r}"]
    if story.doubled:
        return [f"{name} was executed more than once in attempts {story.doubled}"]
    later = [epoch for epoch in story.starts if epoch > run["epoch"]]
    return [f"{name} was executed in attempts {later} that have no row"] if later else []


def _stuck(story: _Story) -> list[str]:
    run, name = story.run, story.name
    stuck = [f"{name} has an attempt that never ended: {each['epoch']}" for each in story.attempts if _runs_on(each)]
    if run["status"] in FINISHED and run["lease_expires_at"] is not None:
        stuck.append(f"{name} has ended and is still leased")
    if (run["status"] in FINISHED) != (run["finished_at"] is not None):
        stuck.append(f"{name} contradicts its time of end: {run['finished_at']}")
    if len(story.attempts) != run["epoch"]:
        stuck.append(f"{name} should have as many attempts as epochs")
    return stuck


def _runs_on(attempt: dict[str, Any]) -> bool:
    return attempt["status"] == "running" or attempt["finished_at"] is None


def _overlaps(story: _Story) -> int:
    later = itertools.pairwise(sorted(story.starts))
    return sum(story.ends.get(one, 0.0) > story.starts[other] for one, other in later)


# --- How many machines at once ---------------------------------------------------------------------------------------


def most_at_once(rows: Rows) -> dict[str, int]:
    """By queue, and in all under "": the most machines whose rows existed and were not gone at one moment."""
    spans = [(each["queue"], each["reserved_at"], each["gone_at"]) for each in rows.machines]
    most: dict[str, int] = {}
    for queue in {"", *(each[0] for each in spans)}:
        mine = [(begin, end) for name, begin, end in spans if queue in ("", name)]
        most[queue] = _most([(begin, 1) for begin, _ in mine] + [(end, -1) for _, end in mine if end is not None])
    return most


def most_alive_at_once(journal: Iterable[dict[str, Any]]) -> int:
    """By the journal of the API: the most machines that were launched and not yet destroyed at one moment."""
    steps = []
    for line in journal:
        if line.get("type") == "launch":
            steps.append((line["at"], 1))
        elif line.get("type") == "destroy" and line.get("status") == "destroyed":
            steps.append((line["at"], -1))
    return _most(steps)


def _most(steps: list[tuple[Any, int]]) -> int:
    alive = most = 0
    for _, change in sorted(steps, key=lambda step: (step[0], step[1])):
        alive += change
        most = max(most, alive)
    return most


def statuses(rows: Rows) -> dict[str, int]:
    """How many runs have each status."""
    return dict(Counter(run["status"] for run in rows.runs))
