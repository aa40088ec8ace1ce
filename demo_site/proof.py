"""Whether the record is true: compared with the Machines API's own log and with the text of each PDF."""

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pypdf import PdfReader
from pypdf.errors import PyPdfError

LEAST_MACHINES = 3
CLOCKS_DIFFER = 0.5
"""Seconds by which the database's clock and the log's may disagree."""

Run = dict[str, Any]
Line = dict[str, Any]


def disagreements(record: dict[str, Any], journal: list[Line], media: Path) -> list[str]:
    """Sentences about whatever is not as it should be; none when the record is true."""
    runs = record["runs"]
    problems = list(_about_all(record))
    for run in runs:
        found = [*_about_run(run), *_about_machine(run, record["processes"], journal), *_about_file(run, media)]
        problems += [f"{run['label']}: {sentence}" for sentence in found]
    return problems


def survivors(record: dict[str, Any], journal: list[Line]) -> list[str]:
    """A sentence for each process of the demo that is still there."""
    pids = {run["pid"]: f"the task process of {run['label']}" for run in record["runs"] if run["pid"]}
    pids |= {line["pid"]: f"machine {line['name']}" for line in journal if line.get("pid")}
    pids |= {pid: f"the {name}" for name, pid in record["processes"].items() if name != "demo"}
    return [f"Process {pid}, {what}, is still there." for pid, what in pids.items() if _is_ours(pid)]


def _about_all(record: dict[str, Any]) -> Iterator[str]:
    runs = record["runs"]
    machines = {run["machine_id"] for run in runs if run["machine_id"]}
    if len(machines) < min(LEAST_MACHINES, len(runs)):
        yield f"Only {len(machines)} machines did all the work; at least {LEAST_MACHINES} were expected."
    if len({run["run"] for run in runs}) != len(runs):
        yield "A run is recorded twice."


def _about_run(run: Run) -> Iterator[str]:
    if run["status"] != "SUCCESSFUL":
        yield f"the run is {run['status']}: {', '.join(run['errors']) or 'no error'}."
    for name in ("machine", "machine_id", "pid", "exit_event", "request_ids", "run_seconds", "wait_seconds"):
        if run[name] in (None, "", []):
            yield f"{name} is not recorded."


def _about_machine(run: Run, processes: dict[str, int], journal: list[Line]) -> Iterator[str]:
    if (name := next((name for name, pid in processes.items() if pid == run["pid"]), None)) is not None:
        yield f"it was made in the {name}'s own process {run['pid']}."
    mine = [line for line in journal if line.get("machine") == run["machine_id"]]
    created = [
        line for line in mine if line["kind"] == "request" and line["method"] == "POST" and line["status"] == 200
    ]
    starts = [line for line in mine if line["kind"] == "event" and line["type"] == "start" and line.get("pid")]
    exits = [line for line in mine if line["kind"] == "event" and line["type"] == "exit"]
    if not (created and starts and exits):
        yield f"the log has no create, start and exit of machine {run['machine_id']}."
        return
    if {line["name"] for line in mine if "name" in line} != {run["machine"]}:
        yield f"the log knows machine {run['machine_id']} by another name than {run['machine']}."
    if created[0]["request_id"] not in run["request_ids"]:
        yield f"the machine's create request {created[0]['request_id']} is not among {run['request_ids']}."
    yield from _about_exit(run, exits[-1])
    if not _within(run, starts[0]["at"], exits[-1]["at"]):
        yield f"it was not made between the machine's start and its exit ({run['claimed_at']} to {run['finished_at']})."


def _about_exit(run: Run, line: Line) -> Iterator[str]:
    recorded, logged = run["exit_event"] or {}, line["exit_event"]
    for name in ("exit_code", "oom_killed", "requested_stop"):
        if recorded.get(name) != logged[name]:
            yield f"{name} of the machine's exit is {recorded.get(name)!r} in its row and {logged[name]!r} in the log."
    if logged["exit_code"] != 0:
        yield f"its machine exited with code {logged['exit_code']}."


def _within(run: Run, start: float, end: float) -> bool:
    if not (run["claimed_at"] and run["finished_at"]):
        return False
    claimed, finished = (datetime.fromisoformat(run[name]).timestamp() for name in ("claimed_at", "finished_at"))
    return start - CLOCKS_DIFFER <= claimed <= finished <= end + CLOCKS_DIFFER


def _about_file(run: Run, media: Path) -> Iterator[str]:
    if not run["file"]:
        yield "no file is recorded."
        return
    try:
        text = _text(media / run["file"])
    except (OSError, PyPdfError) as error:
        yield f"{run['file']} cannot be read: {error}."
        return
    for words in run["says"]:
        if words not in text:
            yield f"{run['file']} does not say {words!r}."


def _text(file: Path) -> str:
    pages: Iterable[Any] = PdfReader(file).pages
    return " ".join(" ".join(page.extract_text() for page in pages).split())


def _is_ours(pid: int) -> bool:
    """Whether this process runs, and is one of ours rather than a new one of the same number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    words = Path(f"/proc/{pid}/cmdline")
    if not Path("/proc/self").exists():
        return True
    try:
        return any(
            name in words.read_text()
            for name in ("mq_run", "mq_dispatcher", "runserver", "emulator", "proxy", "gunicorn")
        )
    except OSError:
        return False
