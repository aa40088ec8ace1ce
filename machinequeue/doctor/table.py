"""Show what was found: a table for people, JSON for programs."""

import json
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from machinequeue.doctor.findings import Finding, Status
from machinequeue.doctor.rounds import EXAMINATIONS, Report, question

WIDTH = 80
WORDS = {
    Status.OK: "ok",
    Status.SKIPPED: "-",
    Status.WARNING: "WARNING",
    Status.BLOCKED: "?",
    Status.FAILURE: "FAILURE",
}
_FIRST = max(len(word) for word in WORDS.values()) + 1

Paint = Callable[[Status, str], str]


def rows(report: Report, paint: Paint, width: int = WIDTH) -> str:
    """The rows of one examination: status, name, sentence, and below what to do. `paint` colours the first word."""
    return "\n".join(_row(report.name, finding, paint, width) for finding in report.findings)


def _row(name: str, finding: Finding, paint: Paint, width: int) -> str:
    second = max(map(len, EXAMINATIONS)) + 1
    margin = " " * (_FIRST + second)
    lines = _wrapped(finding.sentence, width, margin, "")
    if finding.remedy:
        lines += _wrapped(finding.remedy, width, margin, "-> ")
    word = paint(finding.status, f"{WORDS[finding.status]:{_FIRST}}")
    return "\n".join([f"{word}{name:{second}}{lines[0].strip()}", *lines[1:]])


def _wrapped(text: str, width: int, margin: str, mark: str) -> list[str]:
    indent = margin + " " * len(mark)
    return textwrap.wrap(
        text,
        width,
        initial_indent=margin + mark,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def summary(reports: Iterable[Report]) -> str:
    """How many findings there are of each kind, the worst first."""
    count = counts(reports)
    words = {
        Status.FAILURE: ("failure", "failures"),
        Status.BLOCKED: ("not examined", "not examined"),
        Status.WARNING: ("warning", "warnings"),
        Status.OK: ("ok", "ok"),
        Status.SKIPPED: ("with nothing to examine", "with nothing to examine"),
    }
    return ", ".join(
        f"{count[each]} {one if count[each] == 1 else many}" for each, (one, many) in words.items() if count[each]
    )


def counts(reports: Iterable[Report]) -> dict[Status, int]:
    """Findings by status."""
    found = [finding.status for report in reports for finding in report.findings]
    return {status: found.count(status) for status in Status}


def listing() -> str:
    """Every examination with what it asks."""
    second = max(map(len, EXAMINATIONS)) + 2
    return "\n".join(f"{name:{second}}{question(name)}" for name in EXAMINATIONS)


def as_json(reports: Iterable[Report]) -> str:
    """`{"ok", "counts", "findings": [{"examination", "status", "sentence", "remedy", "seconds"}]}`."""
    reports = list(reports)
    count = counts(reports)
    findings: list[dict[str, Any]] = [
        {
            "examination": report.name,
            "status": finding.status.value,
            "sentence": finding.sentence,
            "remedy": finding.remedy,
            "seconds": round(report.seconds, 3),
        }
        for report in reports
        for finding in report.findings
    ]
    return json.dumps(
        {
            "ok": not count[Status.FAILURE] + count[Status.BLOCKED],
            "counts": {status.value: number for status, number in count.items()},
            "findings": findings,
        },
        indent=2,
        ensure_ascii=False,
    )
