"""A command that writes, waits and ends as it is told."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser


class Command(BaseCommand):
    help = "Write, wait and end."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("words", nargs="*")
        parser.add_argument("--aside", default="", help="For stderr.")
        parser.add_argument("--bytes", type=int, default=0, help="So many bytes of every value.")
        parser.add_argument("--gate", default="", help="A file to wait for, between the first word and the rest.")
        parser.add_argument("--deaf", action="store_true", help="Wait on when interrupted.")
        parser.add_argument("--leave-behind", action="store_true", help="A process that writes without end.")
        parser.add_argument("--error", default="")
        parser.add_argument("--code", type=int, default=1)
        parser.add_argument("--leave", choices=("exit", "at once", "raise", "die"))

    def handle(self, *args: Any, **options: Any) -> None:
        first, *rest = options["words"] or [""]
        sys.stdout.write(first)
        sys.stdout.flush()
        sys.stderr.write(options["aside"])
        self._wait(options["gate"], options["deaf"])
        sys.stdout.write("".join(f" {word}" for word in rest))
        sys.stdout.flush()
        left = options["bytes"]
        while left > 0:
            left -= sys.stdout.buffer.write(bytes(range(256))[:left])
        sys.stdout.buffer.flush()
        if options["leave_behind"]:
            subprocess.Popen(["yes"], start_new_session=True)
        self._end(options["leave"], options["error"], options["code"])

    def _wait(self, gate: str, deaf: bool) -> None:
        if not gate:
            return
        (Path(gate).parent / f"{Path(gate).name}.{os.getpid()}.started").touch()
        clock = threading.Event()
        while not Path(gate).exists():
            try:
                clock.wait(0.02)
            except KeyboardInterrupt:
                if not deaf:
                    sys.stdout.write(" tidied up")
                    raise

    def _end(self, leave: str | None, error: str, code: int) -> None:
        if leave == "exit":
            sys.exit(code)
        if leave == "at once":
            os._exit(code)
        if leave == "raise":
            raise KeyError(error)
        if leave == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if error:
            raise CommandError(error, returncode=code)
