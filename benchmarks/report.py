"""The results as a table for people and as JSON for programs."""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.figures import Row, Section

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parent / "docs" / "reference" / "benchmarks.md"
PACKAGES = ("machinequeue", "django", "huey", "psycopg", "redis", "procrastinate", "celery")

INTRODUCTION = """# Benchmarks

What machinequeue costs beside what cannot be beaten, and beside Procrastinate and Celery on the same PostgreSQL, Redis
and Django project. Read ratios, not milliseconds: another computer, or a busy one, has other milliseconds. Each figure
is the median of repetitions that alternate with those they are compared to, with [minimum–maximum].
"""

METHOD = """
## How it measures

- `CONN_MAX_AGE` is 60 and `DEBUG` off everywhere; both servers keep their own settings. The tasks do nothing, so
  everything here is overhead.
- **a, b**: from one process, in autocommit, no dispatcher running. The floor is psycopg (a prepared statement, or COPY)
  into a table with the columns of a run, and redis-py. The line below it has all indexes of a run as well.
- **c**: pairs of `manage.py noop` (a command without system checks) and a task on a machine that the emulator starts
  for it. The next pair begins when the machine is gone. The stages come from the rows of run, attempt and machine and
  from the emulator's journal; each is a median of its own, so their sum is near the figure, not equal to it. The
  start of a process is known to 10 ms only, so neighbouring stages may trade a few milliseconds, even below zero.
- **d**: one worker each, all three up at once, blocks of calls alternating. The caller looks for the result every
  millisecond: machinequeue's reads the whole result, Celery's its state and value, Procrastinate's a status, as it
  stores nothing else.
- **e**: two machines, two Procrastinate processes of concurrency 1, one Celery pool of two processes. machinequeue
  forks a process for every run; the other two run all of them in the same process.

## Repeat it

PostgreSQL and Redis must run on this computer, or be named by `DATABASE_URL` and `REDIS_URL`. The run makes a database
and two empty Redis databases its own and leaves nothing behind.

    make bench                   # all of it; writes benchmarks/results.json and this page
    make bench ARGS=--quick      # fewer repetitions; writes nothing
    make bench ARGS="c d"        # some questions; writes nothing
"""


def table(sections: list[Section]) -> str:
    """Markdown that reads well on a terminal too."""
    return "\n".join(line for section in sections for line in _lines(section))


def _lines(section: Section) -> list[str]:
    rows = [("", "figure", "ratio", "goal"), *[_cells(row) for row in section.rows]]
    lines = ["", f"### {section.key}. {section.question}", "", *_aligned(rows)]
    if section.stages:
        total = sum(figure.median for figure in section.stages.values()) or 1.0
        stages = [("stage", "time", "share")]
        stages += [(name, str(f), f"{100 * f.median / total:.0f} %") for name, f in section.stages.items()]
        lines += ["", *_aligned(stages)]
    return [*lines, "", section.note] if section.note else lines


def _cells(row: Row) -> tuple[str, ...]:
    goal = "" if row.goal is None else f"≤ {row.goal:g}: {'met' if row.met else 'missed'}"
    return (row.name, str(row.figure), "" if row.ratio is None else str(row.ratio), goal)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], rule, *lines[1:]]


def conditions(servers: dict[str, str]) -> dict[str, str]:
    """Where and with what it ran."""
    packages = {name: version(name) for name in PACKAGES}
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processors": f"{os.cpu_count()} × {_processor()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        **servers,
        **packages,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(sections: list[Section], where: dict[str, str], seconds: float) -> None:
    """The JSON and the page."""
    found = {"conditions": where, "seconds": round(seconds), "sections": {s.key: s.as_dict() for s in sections}}
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    facts = ", ".join(f"{name} {value}" for name, value in where.items())
    page = f"{INTRODUCTION}\n## Results\n\nBy `make bench`, in {seconds:.0f} s. {facts}.\n{table(sections)}\n{METHOD}"
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page)
