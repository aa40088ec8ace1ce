"""The entrypoint of a task machine."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from machinequeue.runner import life


class Command(BaseCommand):
    help = "Run inside a task machine: execute what is ready for it, then exit. The dispatcher starts this."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="The machine's name, as its row has it.")

    def handle(self, *args: Any, **options: Any) -> None:
        if code := life.live(options["name"]):
            raise SystemExit(code)
