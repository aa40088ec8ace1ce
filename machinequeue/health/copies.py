"""Whether there is a backup to go back to, and whether it was proven to restore."""

from django.apps import apps
from django.utils.translation import gettext_lazy as _

from machinequeue.health.answers import Answer, failure, ok, warning
from machinequeue.lifecycle import DrillStatus
from machinequeue.records import backups, vitals

APP = "machinequeue.contrib.backups"
NONE_HERE = _("No backups are made here: machinequeue.contrib.backups is not in INSTALLED_APPS.")
LOOK = _("See the run in the admin, and make one now: manage.py mq_backup.")


def expected() -> bool:
    """Whether this site makes backups."""
    return apps.is_installed(APP) or bool(vitals.backed_up())


def backup(database: str = "default", late: float = 26 * 3600.0, smallest: float = 0.5) -> Answer:
    """Whether the newest backup is at most `late` seconds old, the last try did not fail, and it is not suddenly small:
    less than this part of the one before is a warning.
    """
    if not expected():
        return ok(NONE_HERE)
    newest, failed = backups.newest(database), backups.last_failure(database)
    error = failed.error if failed is not None and (newest is None or failed.pk > newest.pk) else ""
    if newest is None:
        text = _("There is no backup, and the last try failed: %(error)s") if error else _("There is no backup.")
        return failure(text, LOOK, database=database, error=error)
    age, size, before = backups.age(newest), newest.size_bytes or 0, vitals.size_before(newest) or 0
    figures = {"database": database, "age_seconds": age, "size_bytes": size, "before_bytes": before, "error": error}
    if error:
        text = _("The last backup failed: %(error)s. The newest good one is %(age_seconds)s old.")
        return failure(text, LOOK, **figures)
    if age > late:
        return failure(_("The newest backup is %(age_seconds)s old."), LOOK, **figures)
    if size < smallest * before:
        return warning(
            _("The newest backup has only %(size_bytes)s; the one before it had %(before_bytes)s."),
            _("Was so much deleted? Restore it somewhere: manage.py mq_restore_drill."),
            **figures,
        )
    return ok(_("The newest backup is %(age_seconds)s old and has %(size_bytes)s."), **figures)


def drill(database: str = "default", late: float = 8 * 86_400.0) -> Answer:
    """Whether the last restore drill, at most `late` seconds ago, proved that the backup restores."""
    if not expected():
        return ok(NONE_HERE)
    last = backups.last_drill(database)
    again = _("Try it: manage.py mq_restore_drill.")
    if last is None:
        return warning(_("No backup was ever proven to restore."), again, database=database)
    age = vitals.drill_age(last)
    figures = {"database": database, "age_seconds": age, "backup": last.backup.name, "reason": last.reason}
    if last.status == DrillStatus.FAILED:
        text = _("The last restore drill failed: %(reason)s")
        return failure(text, _("The backup %(backup)s may be worth nothing. Make another, and try again."), **figures)
    if last.status == DrillStatus.NOT_PROVEN:
        text = _("The last restore drill proved nothing: %(reason)s")
        return warning(text, _("Set DRILL_DATABASE_URL, or have PostgreSQL's server in the image."), **figures)
    if age > late:
        return warning(_("The last restore drill was %(age_seconds)s ago."), again, **figures)
    return ok(_("A backup was restored and compared %(age_seconds)s ago."), **figures)
