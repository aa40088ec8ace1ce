"""Site, dispatcher and emulator together; with serverless views also the edge."""

import os
import signal
import subprocess
import sys
import threading
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from machinequeue import conf
from machinequeue.errors import ConfigurationError
from machinequeue.machines.emulator.loopback import port_number
from machinequeue.machines.emulator.options import delays_text
from machinequeue.serverless import views

END_SECONDS = 15


class Command(BaseCommand):
    help = "Run the site, a dispatcher and the local Machines API together, until Ctrl-C or until one of them ends."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("addrport", nargs="?", default="127.0.0.1:8000", help="Address of the site.")
        parser.add_argument("--noreload", action="store_true", help="Do not restart the site when code changes.")
        parser.add_argument(
            "--edge-port",
            type=port_number,
            default=8080,
            help="Port of the edge, which runs when there are serverless views.",
        )
        parser.add_argument("--rate-limits", action="store_true", help="See mq_emulator.")
        parser.add_argument("--boot-delay", type=delays_text, metavar="create=2..5,start=0.5", help="See mq_emulator.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            conf.need_local_api("mq_dev", "starts a local one")
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        site = ["runserver", options["addrport"], *(["--noreload"] if options["noreload"] else [])]
        emulator = ["mq_emulator", *(["--rate-limits"] if options["rate_limits"] else [])]
        emulator += ["--boot-delay", options["boot_delay"]] if options["boot_delay"] else []
        commands = {"emulator": emulator, "dispatcher": ["mq_dispatcher"], "site": site}
        if views.any_marked():
            commands["edge"] = ["mq_edge", "--web", "--port", str(options["edge_port"])]
        self.stdout.flush()
        children = {name: self._start(words) for name, words in commands.items()}
        try:
            ended = _first_to_end(children)
        finally:
            for child in children.values():
                _end(child)
        if ended is not None:
            raise CommandError(f"The {ended} ended by itself (see above), so the others were ended too.")

    def _start(self, words: list[str]) -> "subprocess.Popen[bytes]":
        # Groups of their own: runserver's reloader is two processes.
        return subprocess.Popen([sys.executable, sys.argv[0], *words], start_new_session=True)


def _first_to_end(children: "dict[str, subprocess.Popen[bytes]]") -> str | None:
    """The name of the child that ended, or None after SIGINT or SIGTERM."""
    done = threading.Event()
    ended: list[str] = []

    def watch(name: str, child: "subprocess.Popen[bytes]") -> None:
        child.wait()
        ended.append(name)
        done.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    for name, child in children.items():
        threading.Thread(target=watch, args=(name, child), daemon=True).start()
    done.wait()
    return ended[0] if ended else None


def _end(child: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(END_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return
