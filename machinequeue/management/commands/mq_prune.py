"""Retention by hand."""

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from machinequeue.errors import ConfigurationError
from machinequeue.records import pruning


class Command(BaseCommand):
    help = "Delete finished runs, and machines that are gone, that are old enough, as the leading dispatcher does."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only count them.")
        parser.add_argument(
            "--older-than", type=float, metavar="DAYS", help="Instead of what the settings say, however they ended."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        days = options["older_than"]
        if days is not None and days < 0:
            raise CommandError(f"--older-than must be 0 or more days, not {days:g}.")
        try:
            ages = pruning.Ages.of_settings() if days is None else pruning.Ages.all_of(timedelta(days=days))
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        pruned = pruning.count(ages) if options["dry_run"] else pruning.prune_all(ages)
        would = "Would delete" if options["dry_run"] else "Deleted"
        self.stdout.write(
            f"{would} {pruned.runs} run{'s' * (pruned.runs != 1)} and "
            f"{pruned.machines} machine{'s' * (pruned.machines != 1)}."
        )
