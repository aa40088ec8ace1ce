"""The backups that there are, and whether they restore."""

import json
import shutil
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from machinequeue.backups import retrieve, stored_names
from machinequeue.errors import MachineQueueError
from machinequeue.records import Backup, RestoreDrill, backups

HEADINGS = ("backup", "state", "age", "size", "took", "sha256", "last drill")


class Command(BaseCommand):
    requires_system_checks = ()  # it is needed most when the database is gone
    help = "List the newest backups with size, age, checksum, duration and last drill; or fetch one into a file."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--limit", type=int, default=20, help="How many (default: 20).")
        parser.add_argument("--json", action="store_true", help="As JSON, with all facts.")
        parser.add_argument(
            "--fetch", metavar="NAME", help="Download a backup, check its checksum, decrypt and decompress it."
        )
        parser.add_argument("--stored", action="store_true", help="The names in the storage; needs no database.")
        parser.add_argument("--to", metavar="FILE", help="The file for --fetch; it must not exist.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["limit"] < 1:
            raise CommandError(f"--limit must be 1 or more, not {options['limit']}.")
        if options["to"] and not options["fetch"]:
            raise CommandError("--to names the file for --fetch NAME; manage.py mq_backups --stored lists the names.")
        try:
            if options["fetch"]:
                self._fetch(options["fetch"], options["to"])
            elif options["stored"]:
                for name in stored_names():
                    self.stdout.write(name)
            else:
                self._list(options)
        except MachineQueueError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            raise CommandError(
                f"The database does not say which backups there are: {str(error).strip().splitlines()[0]}. "
                "The storage does: manage.py mq_backups --stored"
            ) from error

    def _list(self, options: dict[str, Any]) -> None:
        listed = backups.recent(options["limit"])
        drills = backups.drills_of([each.pk for each in listed])
        if options["json"]:
            self.stdout.write(json.dumps([_facts(each, drills.get(each.pk)) for each in listed], indent=2))
            return
        if not listed:
            self.stdout.write("There is no backup. manage.py mq_backup makes one.")
            return
        rows = [HEADINGS, *(_row(each, drills.get(each.pk)) for each in listed)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        for row in rows:
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for each in listed:
            if each.error:
                self.stdout.write(f"{each.name} failed: {each.error}")

    def _fetch(self, name: str, to: str | None) -> None:
        target = Path(to or name.split(".gz", maxsplit=1)[0].split(".gpg", maxsplit=1)[0])
        if target.exists():
            raise CommandError(f"{target} exists. Name another file with --to.")
        with tempfile.TemporaryDirectory(prefix="mq-fetch-", dir=target.absolute().parent) as folder:
            shutil.move(retrieve(name, Path(folder)), target)
        self.stdout.write(f"{target}: {target.stat().st_size} bytes.")


def _row(backup: Backup, drill: RestoreDrill | None) -> tuple[str, ...]:
    state = "removed" if backup.removed_at and backup.status == "succeeded" else backup.status
    return (
        backup.name,
        state,
        _duration(_age(backup)),
        _size(backup.size_bytes),
        "" if backup.seconds is None else f"{backup.seconds:.1f} s",
        backup.sha256[:12],
        "none" if drill is None else drill.get_status_display().lower(),
    )


def _facts(backup: Backup, drill: RestoreDrill | None) -> dict[str, Any]:
    return {
        "name": backup.name,
        "kind": backup.kind,
        "database": backup.database,
        "status": backup.status,
        "stored": backup.status == "succeeded" and backup.removed_at is None,
        "started_at": backup.started_at.isoformat(),
        "age_seconds": round(_age(backup), 3),
        "size_bytes": backup.size_bytes,
        "sha256": backup.sha256,
        "seconds": backup.seconds,
        "encrypted": backup.encrypted,
        "server_version": backup.server_version,
        "rows": sum((backup.counts or {}).values()),
        "error": backup.error,
        "last_drill": None
        if drill is None
        else {
            "status": drill.status,
            "method": drill.method,
            "reason": drill.reason,
            "differences": drill.differences,
            "seconds": drill.seconds,
            "finished_at": drill.finished_at.isoformat() if drill.finished_at else None,
        },
    }


def _age(backup: Any) -> float:
    return float((backup.now - backup.started_at).total_seconds())


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(many: int | None) -> str:
    if many is None:
        return ""
    return f"{many / 1e9:.1f} GB" if many >= 1e9 else f"{many / 1e6:.1f} MB" if many >= 1e6 else f"{many / 1e3:.1f} kB"
