"""The local Machines API, set up for this project."""

import os
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import BaseCommand, CommandError

from machinequeue import conf
from machinequeue.errors import ConfigurationError
from machinequeue.machines.emulator.loopback import port_number
from machinequeue.machines.emulator.options import delays_text


class Command(BaseCommand):
    help = "Run a Machines API on this computer, whose machines are processes that run this project."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--port", type=port_number, help="Port on 127.0.0.1; default: that of the configured address."
        )
        parser.add_argument("--rate-limits", action="store_true", help="Answer 429 as often as Fly does.")
        parser.add_argument(
            "--boot-delay", type=delays_text, metavar="create=2..5,start=0.5", help="Seconds that a boot takes."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        port = options["port"]
        try:
            settings = conf.settings() if port is not None else conf.need_local_api("mq_emulator", "is a local one")
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if port is None:
            port = urlsplit(settings.api_url).port or urlsplit(conf.EMULATOR_API).port
        command = [sys.executable, "-m", "machinequeue.machines.emulator", "--env-secrets", "--port", str(port)]
        command += ["--app", settings.app or "local", "--state-dir", str(conf.state_dir() / "emulator")]
        command += ["--image", f"{settings.image or conf.EMULATOR_IMAGE}={Path.cwd()}:{sys.executable}"]
        command += [] if options["rate_limits"] else ["--no-rate-limits"]
        command += ["--boot-delay", options["boot_delay"]] if options["boot_delay"] else []
        # The token goes by environment: a command line is for everybody to read.
        environment = {**os.environ, "FLY_API_TOKEN": settings.api_token or conf.EMULATOR_TOKEN}
        self.stdout.flush()
        os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is wanted
