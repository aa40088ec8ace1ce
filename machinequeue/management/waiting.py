"""What the commands that enqueue a task of ours share: --local and --wait."""

from argparse import ArgumentParser
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from machinequeue import conf

APP = "machinequeue.contrib.backups"
WAIT_SECONDS = 3600.0


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--local", action="store_true", help="Do it in this process instead of on a machine.")
    group.add_argument("--wait", action="store_true", help="Wait until the machine has done it.")


def need_database(alias: str) -> None:
    """Raises CommandError for an alias that DATABASES has not."""
    if alias not in connections.settings:
        raise CommandError(f"DATABASES has no {alias!r}.{conf.suggest(alias, connections.settings)}")


def enqueue(command: BaseCommand, options: dict[str, Any], task: Any, *args: Any) -> Any:
    """Enqueue; with --wait what the run returned, else None. Raises CommandError when it failed.

    A machine runs the same settings, so what is not installed here fails there.
    """
    if not apps.is_installed(APP):
        raise CommandError(f"No backups are made here: add {APP!r} to INSTALLED_APPS, or use --local.")
    result = task.enqueue(*args)
    if not options["wait"]:
        command.stdout.write(f"Enqueued as run {result.id}.")
        return None
    try:
        result.wait(timeout=WAIT_SECONDS)
    except TimeoutError as error:
        raise CommandError(str(error)) from error
    if str(result.status) != "SUCCESSFUL":
        raise CommandError(f"Run {result.id} failed: {result.why()}")
    return result.return_value
