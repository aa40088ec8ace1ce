"""What a page shows of a run while it is made."""

from typing import Any

import django
from django.utils.translation import gettext as _

from machinequeue import MachineTask

if django.VERSION >= (6, 0):
    from django.tasks.exceptions import TaskResultDoesNotExist
else:  # Django 5.2 has them in the backport
    from django_tasks.exceptions import TaskResultDoesNotExist  # type: ignore[no-redef]

State = dict[str, Any]


def run_state(task: MachineTask, run_id: str, download: str) -> State:
    """The run as JSON: where it stands, how far it is, on which machine, and the address of what it made."""
    try:
        result = task.get_result(run_id)
    except TaskResultDoesNotExist:
        return {"status": "UNKNOWN", "label": _("Not being made"), "sentence": "", "finished": True}
    attempts = result.history
    last = attempts[-1] if attempts else {}
    finished = result.run_status not in ("READY", "RUNNING")
    progress = result.progress or {}
    return {
        "status": result.run_status,
        "label": _labels()[result.run_status],
        "sentence": "" if finished and not result.errors else result.why(),
        "finished": finished,
        "progress": 1 if result.run_status == "SUCCESSFUL" else _share(progress),
        "step": progress.get("message", "") if result.run_status == "RUNNING" else "",
        "machine": last.get("machine", ""),
        "machine_id": last.get("machine_id", ""),
        "region": last.get("region", ""),
        "attempt": last.get("number", 0),
        "seconds": last.get("seconds"),
        "download": download if result.run_status == "SUCCESSFUL" else "",
    }


def _labels() -> dict[str, str]:
    return {
        "READY": _("Waiting for a machine"),
        "RUNNING": _("Being made"),
        "SUCCESSFUL": _("Ready"),
        "FAILED": _("Could not be made"),
        "CANCELLED": _("Cancelled"),
        "EXPIRED": _("Too late"),
    }


def _share(progress: dict[str, Any]) -> float | None:
    total = progress.get("total")
    return round(min(progress.get("current", 0) / total, 1), 3) if total else None
