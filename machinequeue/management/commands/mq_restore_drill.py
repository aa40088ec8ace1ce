"""Prove a backup now."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from machinequeue import backups
from machinequeue.errors import MachineQueueError
from machinequeue.management import waiting


class Command(BaseCommand):
    help = (
        "Restore the newest backup into DRILL_DATABASE_URL, or a server started for it, and compare the rows: on a "
        "machine or (--local) here. The exit code is 0 when it is proven, 1 when it is refuted, 2 when not proven."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--database", default="default", help="Alias of the database (default: default).")
        parser.add_argument("--name", default="", help="Name of another backup than the newest.")
        waiting.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        waiting.need_database(options["database"])
        from machinequeue.contrib.backups import tasks

        if not options["local"]:
            self._say(waiting.enqueue(self, options, tasks.prove, options["database"], options["name"]))
            return
        try:
            self._say(tasks.outcome(backups.drill(options["database"], name=options["name"])))
        except MachineQueueError as error:
            raise CommandError(str(error)) from error

    def _say(self, found: dict[str, Any] | None) -> None:
        if found is None:
            return
        text = f"{found['backup']}: {found['reason']}"
        if found["status"] == "failed":
            raise CommandError(text)
        if found["status"] == "not_proven":
            raise CommandError(f"Not proven. {text}", returncode=2)
        self.stdout.write(f"Proven ({found['method']}). {text}")
