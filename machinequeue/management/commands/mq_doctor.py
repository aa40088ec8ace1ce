"""What is wrong, and what to do about it."""

import logging
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from machinequeue.doctor import table
from machinequeue.doctor.findings import Status
from machinequeue.doctor.rounds import SECONDS, Report, UnknownExamination, chosen, examine, worst

BAD = {Status.FAILURE, Status.BLOCKED}


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return number


class Command(BaseCommand):
    help = (
        "Examine everything that machinequeue stands on and say what is wrong and what to do about it. Changes "
        "nothing. "
        "Exit code: 0 without a failure, 1 with one (with --strict also with a warning), 2 for a wrong call."
    )
    requires_system_checks: list[str] = []  # they would end the command before it could say what they mean

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--only", action="append", default=[], metavar="NAME", help="Examine only this; repeatable."
        )
        parser.add_argument("--list", action="store_true", help="List the examinations and what each asks.")
        parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
        parser.add_argument("--strict", action="store_true", help="Let a warning count as a failure.")
        parser.add_argument(
            "--timeout",
            type=_seconds,
            metavar="SECONDS",
            default=SECONDS,
            help=f"Seconds for each examination; default: {SECONDS:g}.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["list"]:
            self.stdout.write(table.listing())
            return
        try:
            names = chosen(options["only"])
        except UnknownExamination as error:
            raise CommandError(str(error), returncode=2) from error
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write a line for each call
        reports = self._examine(names, options["timeout"], quiet=options["json"])
        if options["json"]:
            self.stdout.write(table.as_json(reports))
        else:
            self.stdout.write(f"\n{table.summary(reports)}")
        if worst(reports) in (BAD | {Status.WARNING} if options["strict"] else BAD):
            raise SystemExit(1)

    def _examine(self, names: list[str], seconds: float, *, quiet: bool) -> list[Report]:
        reports = []
        for report in examine(names, seconds):
            reports.append(report)
            if not quiet:  # each as soon as it is known: the next may take its time
                self.stdout.write(table.rows(report, self._paint))
                self.stdout.flush()
        return reports

    def _paint(self, status: Status, text: str) -> str:
        paints = {Status.OK: self.style.SUCCESS, Status.WARNING: self.style.WARNING, Status.FAILURE: self.style.ERROR}
        return paints[status](text) if status in paints else text
