"""One round of the reconciler, by hand."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from machinequeue.dispatch.launch import Launcher, open_client
from machinequeue.errors import ConfigurationError
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.errors import MachinesError
from machinequeue.reconciler import Reconciler


class Command(BaseCommand):
    help = "Compare rows with machines once, and repair what is wrong, as the leading dispatcher does all the time."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be done, and why.")

    def handle(self, *args: Any, **options: Any) -> None:
        count = 0
        with _client() as client:
            try:
                client.app()
            except MachinesError as error:
                raise CommandError(f"{error}. {error.advice}") from error
            reconciler = Reconciler(note=lambda *_: None) if options["dry_run"] else Reconciler()
            for repair in reconciler.survey(Launcher(client)):
                count += 1
                self.stdout.write(f"{repair.verb} {repair.subject}: {repair.why}")
                if not options["dry_run"]:
                    self._do(repair)
        would = " to be done" if options["dry_run"] else ""
        self.stdout.write(f"{count} repair{'' if count == 1 else 's'}{would}.")

    def _do(self, repair: Any) -> None:
        try:
            repair.do()
        except MachinesError as error:
            self.stderr.write(f"  failed: {error}")


def _client() -> MachinesClient:
    try:
        return open_client()
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
