"""The backup and the drill, as tasks: each on a machine of its own, of the size and for the time that settings say."""

import os
from typing import Any

from django.conf import settings as django_settings

from machinequeue import backups, conf
from machinequeue.backend import machine_task
from machinequeue.errors import BackupFailed, BackupRefuted, MachineQueueError
from machinequeue.lifecycle import DrillStatus
from machinequeue.records import RestoreDrill
from machinequeue.schedules import schedule
from machinequeue.timetable import crontab

SCHEDULE = "machinequeue.backup"
# Wrong settings are for the system checks to show; here they are as if they were not set.
_SETTINGS = conf.read_settings(getattr(django_settings, "MACHINEQUEUE", {}), os.environ, debug=django_settings.DEBUG)[0]
_LANE = conf.backup_lane(_SETTINGS)


@machine_task(takes_context=True, max_attempts=2, isolation="machine", **_LANE)
def back_up(context: Any, databases: list[str] | None = None, media: bool | None = None) -> dict[str, Any]:
    """Back up the databases, and the media files if they are wanted; prune; have the drill made.

    One that fails keeps no other from being made. Raises BackupFailed for those that did.
    """
    settings = conf.settings()
    run_id = context.task_result.id
    made: dict[str, Any] = {}
    trouble = []
    for database in settings.backup_databases if databases is None else databases:
        try:
            made[database] = backups.back_up(database, run_id=run_id).name
        except MachineQueueError as error:
            trouble.append(f"{database}: {error}")
    if settings.backup_media if media is None else media:
        try:
            made["media"] = backups.back_up_media(run_id=run_id).name
        except MachineQueueError as error:
            trouble.append(f"media: {error}")
    removed = backups.prune() if made else 0
    drills = [prove.enqueue(database).id for database in made if database != "media"] if settings.backup_drill else []
    if trouble:
        raise BackupFailed(" ".join(trouble))
    return {"made": made, "removed": removed, "drills": drills}


@machine_task(takes_context=True, isolation="machine", **_LANE)
def prove(context: Any, database: str = "default", name: str = "") -> dict[str, Any]:
    """Restore the newest backup of the database, or the named one, and compare.

    Raises BackupRefuted when it does not restore to what was backed up.
    """
    drill = backups.drill(database, name=name, run_id=context.task_result.id)
    if drill.status == DrillStatus.FAILED:
        raise BackupRefuted(drill.reason)
    return outcome(drill)


def outcome(drill: RestoreDrill) -> dict[str, Any]:
    """What a drill found out, as JSON."""
    return {"backup": drill.backup.name, "status": drill.status, "method": drill.method, "reason": drill.reason}


if _SETTINGS.backup_schedule:
    schedule(SCHEDULE, back_up, cron=crontab(_SETTINGS.backup_schedule, timezone=_SETTINGS.backup_timezone))
