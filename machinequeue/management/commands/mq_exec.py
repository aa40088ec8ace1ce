"""A management command on a machine of its own."""

import argparse
import sys
import uuid
from typing import Any

from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand, CommandError, CommandParser

from machinequeue import conf
from machinequeue.compat import InvalidTask, TaskResultDoesNotExist, task_backends
from machinequeue.contrib import commands, manage
from machinequeue.errors import MachineQueueError
from machinequeue.following import Follower

OPTIONS = {"memory": "memory_mb", "cpus": "cpus", "cpu_kind": "cpu_kind", "region": "regions", "timeout": "timeout"}
CODES = """\
Exit codes: that of the command itself; 74 it succeeded and output was dropped; 121 cancelled; 122 lost with its
machines; 123 out of memory; 124 over its timeout; 125 never started; 128 + n killed by signal n; 130 left by Ctrl-C;
141 nobody reads stdout any more."""


class Command(BaseCommand):
    help = "Run a management command on a machine of its own: mq_exec --memory 2048 -- dumpdata auth > auth.json"
    requires_system_checks: list[str] = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(prog_name, subcommand, epilog=CODES, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--memory", type=int, metavar="MB", help="Memory of the machine.")
        parser.add_argument("--cpus", type=int, help="CPUs; default: as few as the memory needs.")
        parser.add_argument("--cpu-kind", choices=[*conf.GUESTS], help="Kind of CPU.")
        parser.add_argument("--region", action="append", metavar="iad", help="Region; again for those to try next.")
        parser.add_argument("--timeout", type=float, metavar="SECONDS", help="Longest time that the command may take.")
        parser.add_argument("--queue", help="Queue; default: default.")
        parser.add_argument("--backend", help="Entry of TASKS; default: the first that uses machinequeue.")
        way = parser.add_mutually_exclusive_group()
        way.add_argument("--follow", action="store_true", help="Follow it until it has ended; the default.")
        way.add_argument("--detach", action="store_true", help="Only print the id of the run.")
        way.add_argument("--attach", metavar="ID", help="Follow a run that is there already.")
        parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- command ...", help="The command.")

    def handle(self, *args: Any, **options: Any) -> None:
        words = options["words"][1:] if options["words"][:1] == ["--"] else options["words"]
        run_id = self._attached(options["attach"], words) if options["attach"] else self._enqueued(words, options)
        if options["detach"]:
            self.stdout.write(str(run_id))
            return
        follower = Follower(run_id, sys.stdout.buffer, sys.stderr.buffer, self._say if options["verbosity"] else _mute)
        if code := follower.follow():
            raise SystemExit(code)

    def _attached(self, text: str, words: list[str]) -> uuid.UUID:
        if words:
            raise CommandError(f"--attach follows run {text}; it takes no command.")
        for alias in _aliases():
            try:
                return uuid.UUID(task_backends[alias].get_result(text).id)
            except TaskResultDoesNotExist as error:
                problem = str(error)
        raise CommandError(problem)

    def _enqueued(self, words: list[str], options: dict[str, Any]) -> uuid.UUID:
        if not words:
            raise CommandError("Which command? manage.py mq_exec --memory 2048 -- dumpdata auth")
        try:
            task = commands.sized(getattr(manage, words[0]), self._asked(options))
            _check_words(words)
            result = task.enqueue(*words[1:])
        except (InvalidTask, MachineQueueError) as error:
            raise CommandError(str(error)) from error
        if not options["detach"]:
            self._say(f"run {result.id}: {' '.join(words)}")
        return uuid.UUID(result.id)

    def _asked(self, options: dict[str, Any]) -> dict[str, Any]:
        asked = {name: options[given] for given, name in OPTIONS.items() if options[given] is not None}
        aliases = _aliases()
        alias = options["backend"] or aliases[0]
        if alias not in aliases:
            raise CommandError(f"No entry of TASKS called {alias!r} uses machinequeue.{conf.suggest(alias, aliases)}")
        return {**asked, "queue_name": options["queue"], "backend": alias}

    def _say(self, sentence: str) -> None:
        self.stderr.write(f"mq_exec: {sentence}", style_func=lambda text: text)
        self.stderr.flush()


def _aliases() -> list[str]:
    """The entries of TASKS that use machinequeue."""
    from django.conf import settings

    found = [alias for alias, params in getattr(settings, "TASKS", {}).items() if conf.is_ours(params)]
    if not found:
        raise CommandError(
            f"No entry of TASKS uses machinequeue: TASKS = {{'default': {{'BACKEND': '{conf.BACKEND}'}}}}"
        )
    return found


def _check_words(words: list[str]) -> None:
    """Let the command's own parser refuse its arguments now, before a machine is launched for them."""
    app = get_commands()[words[0]]
    command = app if isinstance(app, BaseCommand) else load_command_class(app, words[0])
    command.create_parser("manage.py", words[0]).parse_args(words[1:])


def _mute(sentence: str) -> None:
    """Say nothing."""
