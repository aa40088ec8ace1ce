"""What was ordered, and the record of how it was made: demo.json."""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from django.db import connection

from demo_site.store.models import Purchase, PurchaseItem, SalesReport
from demo_site.store.money import euros
from machinequeue import MachineTaskResult

UNFINISHED = ("READY", "RUNNING")


@dataclass
class Order:
    """One thing to be made: the run that makes it, and what its PDF has to say."""

    kind: str
    label: str
    says: list[str]
    result: MachineTaskResult
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def receipt(cls, purchase: Purchase, result: MachineTaskResult) -> Self:
        return cls("receipt", purchase.label, [purchase.label, f"Total {euros(purchase.total)}"], result)

    @classmethod
    def report(cls, report: SalesReport, result: MachineTaskResult) -> Self:
        revenue = euros(PurchaseItem.objects.all().revenue())
        return cls("report", str(report), [str(report), f"{Purchase.objects.count():,}", revenue], result)

    @property
    def finished(self) -> bool:
        return self.result.run_status not in UNFINISHED

    def look(self) -> None:
        """Read the run again, unless it has finished."""
        if not self.finished:
            self.result.refresh()
            if self.result.attempts:
                self.history = self.result.history

    def machine_is_gone(self) -> bool:
        """Whether the end of the machine of each attempt is known."""
        if any(attempt["exit_event"] is None for attempt in self.history):
            self.history = self.result.history
        return all(attempt["exit_event"] is not None for attempt in self.history)

    def as_dict(self) -> dict[str, Any]:
        """The order's entry in demo.json; times are ISO 8601, durations seconds."""
        last = self.history[-1] if self.history else {}
        value = self.result.return_value if self.result.run_status == "SUCCESSFUL" else {}
        return {
            "run": self.result.id,
            "task": self.result.task.module_path,
            "kind": self.kind,
            "label": self.label,
            "status": self.result.run_status,
            "attempts": len(self.history),
            "machine": last.get("machine"),
            "machine_id": last.get("machine_id"),
            "region": last.get("region"),
            "pid": last.get("pid"),
            "exit_event": last.get("exit_event"),
            "request_ids": last.get("request_ids", []),
            "enqueued_at": _iso(self.result.enqueued_at),
            "claimed_at": _iso(last.get("claimed_at")),
            "finished_at": _iso(last.get("finished_at")),
            "wait_seconds": _between(self.result.enqueued_at, last.get("claimed_at")),
            "run_seconds": last.get("seconds"),
            "file": value.get("file"),
            "says": self.says,
            "errors": [error.exception_class_path for error in self.result.errors],
        }


def record_of(orders: list[Order], pids: dict[str, int], begun_at: datetime, seconds: float) -> dict[str, Any]:
    """The record of the whole demo."""
    runs = [order.as_dict() for order in orders]
    return {
        "begun_at": _iso(begun_at),
        "seconds": round(seconds, 3),
        "database": connection.vendor,
        "wakeups": "redis" if os.environ.get("REDIS_URL") else "sqlite",
        "processes": {"demo": os.getpid(), **pids},
        "machines": len({run["machine_id"] for run in runs}),
        "runs": runs,
    }


def write(record: dict[str, Any], file: Path) -> None:
    """Write the record as indented JSON."""
    file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment else None


def _between(begin: datetime | None, end: datetime | None) -> float | None:
    return round((end - begin).total_seconds(), 3) if begin and end else None
