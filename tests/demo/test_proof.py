"""The demo's proof finds every kind of untruth in its record."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reportlab.pdfgen.canvas import Canvas

from demo_site import proof

Change = Callable[[dict[str, Any], list[dict[str, Any]]], None]
EXIT = {"exit_code": 0, "oom_killed": False, "requested_stop": False}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        canvas = Canvas(str(tmp_path / f"{number}.pdf"))
        canvas.drawString(100, 100, f"P-00000{number}")
        canvas.drawString(100, 80, f"Total €{number}.00")
        canvas.save()
    return tmp_path


def _run(number: int) -> dict[str, Any]:
    return {
        "run": f"run-{number}",
        "label": f"P-00000{number}",
        "status": "SUCCESSFUL",
        "machine": f"mq-{number}",
        "machine_id": f"id-{number}",
        "pid": 4_200_000 + number,
        "exit_event": dict(EXIT),
        "request_ids": [f"request-{number}"],
        "claimed_at": "2026-11-21T10:00:01+00:00",
        "finished_at": "2026-11-21T10:00:02+00:00",
        "wait_seconds": 1.0,
        "run_seconds": 1.0,
        "file": f"{number}.pdf",
        "says": [f"P-00000{number}", f"Total €{number}.00"],
        "errors": [],
    }


def _journal(number: int) -> list[dict[str, Any]]:
    begin = 1_795_255_200.0  # 2026-11-21 10:00:00 UTC
    machine = {"machine": f"id-{number}", "name": f"mq-{number}"}
    return [
        {
            "at": begin - 1,
            "kind": "request",
            "method": "POST",
            "status": 200,
            "request_id": f"request-{number}",
            **machine,
        },
        {"at": begin, "kind": "event", "type": "start", "status": "started", "pid": 4_100_000 + number, **machine},
        {"at": begin + 3, "kind": "event", "type": "exit", "status": "stopped", "exit_event": dict(EXIT), **machine},
    ]


def _truth() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    record = {"processes": {"demo": 1, "emulator": 2, "dispatcher": 3}, "runs": [_run(number) for number in (1, 2, 3)]}
    return record, [line for number in (1, 2, 3) for line in _journal(number)]


def test_a_true_record_has_no_disagreement(media: Path) -> None:
    assert proof.disagreements(*_truth(), media) == []


def _first(**changes: Any) -> Change:
    return lambda record, journal: record["runs"][0].update(changes)


def _logged(index: int, **changes: Any) -> Change:
    return lambda record, journal: journal[index].update(changes)


def _one_machine(record: dict[str, Any], journal: list[dict[str, Any]]) -> None:
    for run in record["runs"]:
        run.update(machine="mq-1", machine_id="id-1", request_ids=["request-1"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_one_machine, "Only 1 machines did all the work"),
        (_first(run="run-2"), "A run is recorded twice"),
        (_first(status="FAILED", errors=["builtins.ValueError"]), "the run is FAILED: builtins.ValueError"),
        (_first(request_ids=[]), "request_ids is not recorded"),
        (_first(request_ids=["request-2"]), "create request request-1 is not among"),
        (_first(pid=None), "pid is not recorded"),
        (_first(pid=3), "it was made in the dispatcher's own process 3"),
        (_first(machine="mq-2"), "by another name than mq-2"),
        (_first(machine_id="id-9"), "has no create, start and exit of machine id-9"),
        (_first(exit_event=EXIT | {"oom_killed": True}), "oom_killed of the machine's exit is True in its row"),
        (_first(finished_at="2026-11-21T10:00:09+00:00"), "not made between the machine's start and its exit"),
        (_first(claimed_at="2026-11-21T09:59:09+00:00"), "not made between the machine's start and its exit"),
        (_first(file=None), "no file is recorded"),
        (_first(file="4.pdf"), "4.pdf cannot be read"),
        (_first(file="2.pdf"), "2.pdf does not say 'P-000001'"),
        (_first(says=["Total €9.00"]), "1.pdf does not say 'Total €9.00'"),
        (_logged(2, exit_event=EXIT | {"exit_code": 1}), "its machine exited with code 1"),
        (_logged(2, type="launch"), "has no create, start and exit"),
        (_logged(0, status=422), "has no create, start and exit"),
    ],
)
def test_each_untruth_is_found(media: Path, change: Change, sentence: str) -> None:
    record, journal = copy.deepcopy(_truth())
    change(record, journal)
    found = proof.disagreements(record, journal, media)
    assert any(sentence in problem for problem in found), found


def test_a_broken_file_is_found(media: Path) -> None:
    (media / "1.pdf").write_bytes(b"not a PDF")
    assert any("1.pdf cannot be read" in problem for problem in proof.disagreements(*_truth(), media))


def test_a_process_that_stays_is_found() -> None:
    record, journal = _truth()
    assert proof.survivors(record, journal) == []
    words = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "mq_run"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stays:
        assert stays.stdout is not None
        stays.stdout.readline()  # the kernel shows its command line only a moment after Popen returns
        journal[1]["pid"] = stays.pid
        assert proof.survivors(record, journal) == [f"Process {stays.pid}, machine mq-1, is still there."]
        assert stays.stdin is not None
        stays.stdin.close()
    journal[1]["pid"] = os.getpid()  # a new process of an old number is none of ours
    assert proof.survivors(record, journal) == []
