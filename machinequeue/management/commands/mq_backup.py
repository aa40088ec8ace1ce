"""Make a backup now."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from machinequeue import backups, conf
from machinequeue.errors import MachineQueueError
from machinequeue.management import waiting


class Command(BaseCommand):
    help = "Back up the databases to STORAGES['dbbackup'], on a machine or (--local) here, and remove old backups."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--database", action="append", help="Alias; may be repeated. Default: BACKUP_DATABASES.")
        parser.add_argument("--media", action="store_true", default=None, help="The files of the default storage too.")
        waiting.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        for alias in options["database"] or ():
            waiting.need_database(alias)
        if options["local"]:
            self._here(options["database"] or conf.settings().backup_databases, options["media"])
            return
        from machinequeue.contrib.backups import tasks

        result = waiting.enqueue(self, options, tasks.back_up, options["database"], options["media"])
        for what, name in (result or {}).get("made", {}).items():
            self.stdout.write(f"{what}: {name}")

    def _here(self, databases: list[str], media: bool | None) -> None:
        try:
            made = [backups.back_up(database) for database in databases]
            if conf.settings().backup_media if media is None else media:
                made.append(backups.back_up_media())
            removed = backups.prune()
        except MachineQueueError as error:
            raise CommandError(str(error)) from error
        for each in made:
            self.stdout.write(
                f"{each.database or 'media'}: {each.name}, {each.size_bytes} bytes in {each.seconds:.1f} s, "
                f"sha256 {each.sha256}"
            )
        if removed:
            self.stdout.write(f"Removed {removed} old backup{'' if removed == 1 else 's'}.")
