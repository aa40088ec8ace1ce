"""The local edge, set up for this project."""

import os
import sys
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from machinequeue import conf
from machinequeue.dispatch.launch import open_client
from machinequeue.dispatch.serverless import filled
from machinequeue.errors import ConfigurationError
from machinequeue.machines.emulator.loopback import port_number
from machinequeue.machines.errors import MachinesError, NotFound, Unreachable
from machinequeue.machines.proxy.options import seconds
from machinequeue.machines.schema import CreateRequest

WEB = "mq-web"
REACH_SECONDS = 30


class Command(BaseCommand):
    help = "Run a stand-in for Fly's proxy on this computer, in front of the machines that mq_emulator runs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=port_number, default=8080, help="Port on 127.0.0.1; default: 8080.")
        parser.add_argument("--idle-seconds", type=seconds, help="Stop machines that nobody asked for so long.")
        parser.add_argument(
            "--web", action="store_true", help="Also run the site on a machine behind it, by SERVERLESS_COMMAND."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            settings = conf.need_local_api("mq_edge", "works with the local one")
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if options["web"]:
            self._run_site(settings)
        command = [sys.executable, "-m", "machinequeue.machines.proxy", "--verbose", "--port", str(options["port"])]
        command += ["--api", settings.api_url, "--app", settings.app or "local"]
        command += ["--state-dir", str(conf.state_dir() / "edge")]
        command += ["--idle-seconds", str(options["idle_seconds"])] if options["idle_seconds"] is not None else []
        # The token goes by environment: a command line is for everybody to read.
        environment = {**os.environ, "FLY_API_TOKEN": settings.api_token or conf.EMULATOR_TOKEN}
        self.stdout.flush()
        os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is wanted

    def _run_site(self, settings: conf.Settings) -> None:
        """A machine for the views that no serverless machine answers; one that is there is replaced, for its code."""
        command = ["python", "-m", "machinequeue.serverless", *filled(settings.serverless_command)]
        service = {"internal_port": settings.serverless_port, "protocol": "tcp", "min_machines_running": 1}
        config = {
            "image": settings.image or conf.EMULATOR_IMAGE,
            "init": {"cmd": command},
            "restart": {"policy": "on-failure", "max_retries": 3},
            "stop_config": {"signal": "SIGTERM", "timeout": "10s"},
            "services": [{**service, "ports": [{"port": 80, "handlers": ["http"]}]}],
            "env": {
                "DJANGO_SETTINGS_MODULE": os.environ["DJANGO_SETTINGS_MODULE"],
                "MACHINEQUEUE_SERVERLESS_PORT": str(settings.serverless_port),
                **settings.env,
            },
        }
        deadline = time.monotonic() + REACH_SECONDS
        with open_client() as client:
            while True:
                try:
                    for machine in client.list():
                        if machine.name == WEB:
                            client.destroy(machine.id, force=True)
                    client.create(CreateRequest(WEB, None, config))
                    return
                except (Unreachable, NotFound) as error:
                    if time.monotonic() > deadline:
                        raise CommandError(f"The Machines API at {settings.api_url} is not there: {error}") from error
                    time.sleep(0.2)
                except MachinesError as error:
                    raise CommandError(f"{error}. {error.advice}") from error
