"""What happens every night, once now: a backup on one machine, and the proof on another that it restores."""

import shutil
from collections.abc import Callable
from typing import Any

from django.core.management import call_command
from django.db import connection

from demo_site import show
from machinequeue.contrib.backups.tasks import back_up, prove

Wait = Callable[[Callable[[], bool], str], None]


def pass_by(wait: Wait) -> list[str]:
    """Back the shop up and prove it; sentences about what went wrong. Without pg_dump it is only said."""
    if connection.vendor == "postgresql" and shutil.which("pg_dump") is None:
        show.say("\nNo backup: pg_dump is not installed here.")
        return []
    show.say("\nThe night: a backup on one machine, and its proof on another.")
    backup = back_up.enqueue()
    wait(lambda: _is_over(backup), "the backup")
    if problems := _trouble("The backup", backup):
        return problems
    drills = [prove.get_result(run) for run in backup.return_value["drills"]]
    wait(lambda: all(_is_over(drill) for drill in drills), "the restore drill")
    for drill in drills:
        problems += _trouble("The restore drill", drill)
        if not problems:
            show.say(f"{drill.return_value['status'].replace('_', ' ')}: {drill.return_value['reason']}")
    call_command("mq_backups", limit=5)
    return problems


def _is_over(result: Any) -> bool:
    result.refresh()
    return bool(result.is_finished)


def _trouble(what: str, result: Any) -> list[str]:
    if str(result.status) == "SUCCESSFUL":
        return []
    said = result.errors[-1].traceback.strip().splitlines()[-1] if result.errors else result.why()
    return [f"{what} failed: {said}"]
