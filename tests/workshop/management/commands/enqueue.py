"""Enqueue jobs, each in a transaction of its own, and note in the ledger what was committed."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from tests.workshop.ledger import SUCCESS, job, note


class Command(BaseCommand):
    help = "Enqueue jobs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("count", type=int)
        parser.add_argument("--gate", default="", help="A file that the jobs wait for.")

    def handle(self, *args: Any, count: int, gate: str, **options: Any) -> None:
        for _ in range(count):
            with transaction.atomic():
                run = job.enqueue(gate=gate).id
            note("enqueued", run, ends=SUCCESS)
