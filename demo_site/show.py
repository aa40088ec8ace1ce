"""What the demo says: live bars in a terminal, plain lines elsewhere."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from demo_site.record import Order

LINE_SECONDS = 2.0


class Screen(Protocol):
    """Shows how far the orders are."""

    def update(self, orders: list[Order], seconds: float) -> None:
        """Called every now and then; `seconds` since the demo began."""


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """Bars when standard output is a terminal, else lines."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    with Progress(
        TextColumn("{task.description:<28}"), BarColumn(bar_width=40), TextColumn("{task.fields[text]}")
    ) as bars:
        yield Bars(bars)


class Bars:
    """A bar for the receipts, one for the report, and one for what each machine has made."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def update(self, orders: list[Order], seconds: float) -> None:
        receipts = [order for order in orders if order.kind == "receipt"]
        done = sum(order.finished for order in receipts)
        self._show("Receipts", done, len(receipts), f"{done} of {len(receipts)}")
        for order in orders:
            if order.kind == "report":
                self._show("Sales report", _share(order), 1, _doing(order))
        for machine, count in _by_machine(orders).items():
            self._show(machine, count, len(orders), f"{count} made")

    def _show(self, name: str, completed: float, total: float, text: str) -> None:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, text=text)
        self._progress.update(self._bars[name], completed=completed, text=text)


class Lines:
    """A line every two seconds, and one at the end."""

    def __init__(self) -> None:
        self._said_at = -LINE_SECONDS

    def update(self, orders: list[Order], seconds: float) -> None:
        finished = sum(order.finished for order in orders)
        if finished < len(orders) and seconds - self._said_at < LINE_SECONDS:
            return
        self._said_at = seconds
        report = next((_doing(order) for order in orders if order.kind == "report"), "none")
        machines = len(_by_machine(orders))
        say(
            f"{seconds:6.1f} s  {finished} of {len(orders)} runs finished, {machines} machines so far, report: {report}"
        )


def _share(order: Order) -> float:
    progress = order.result.progress or {}
    total = progress.get("total")
    return 1.0 if order.finished else (progress.get("current", 0) / total if total else 0.0)


def _doing(order: Order) -> str:
    if order.finished:
        return order.result.run_status.lower()
    progress = order.result.progress or {}
    return str(progress.get("message") or order.result.run_status.lower())


def _by_machine(orders: list[Order]) -> Counter[str]:
    return Counter(order.history[-1]["machine"] for order in orders if order.history)


def results(record: dict[str, Any], file: Path, media: Path) -> None:
    """A line per run, then what it comes to and where it is."""
    say(f"\n{'what':<9} {'machine':<30} {'id':<16} {'process':>8} {'waited':>9} {'made in':>9}")
    for run in record["runs"]:
        say(
            f"{run['label']:<9} {run['machine'] or '–':<30} {run['machine_id'] or '–':<16} {run['pid'] or 0:>8} "
            f"{run['wait_seconds'] or 0:>7.2f} s {run['run_seconds'] or 0:>7.2f} s"
        )
    say(
        f"\n{len(record['runs'])} runs on {record['machines']} machines in {record['seconds']:.1f} s "
        f"({record['database']}, wake-ups through {record['wakeups']})."
    )
    say(f"Receipts: {media / 'receipts'}\nReport:   {media / 'reports'}\nRecord:   {file}")


def address(url: str, user: str, password: str) -> None:
    """Where the site is, and how to get in."""
    say(f"\nShop:  {url}\nAdmin: {url}admin/   user {user}, password {password}\nCtrl-C ends everything.")


def complain(problems: list[str]) -> None:
    """Say on standard error what is wrong; nothing is said when nothing is."""
    for problem in problems:
        print(f"WRONG: {problem}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(text, flush=True)
