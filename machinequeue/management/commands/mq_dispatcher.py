"""The dispatcher."""

import signal
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from machinequeue import conf, schedules
from machinequeue.containers.driver import Containers
from machinequeue.dispatch.launch import Launcher, open_client
from machinequeue.dispatch.service import Dispatcher
from machinequeue.errors import ConfigurationError
from machinequeue.machines.client import MachinesClient
from machinequeue.reconciler import Reconciler


class Command(BaseCommand):
    help = "Launch machines for runs that are due, until SIGTERM or SIGINT. Any number may run at once."

    def handle(self, *args: Any, **options: Any) -> None:
        settings = _settings()
        with _client() as client:
            dispatcher = Dispatcher(
                Launcher(client),
                Reconciler(),
                contain=Containers(),
                enqueue_due=schedules.enqueue_due,
                keep_schedules=schedules.Keeper(),
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: dispatcher.stop())
            self.stdout.write(f"Dispatcher {dispatcher.name} serves app {settings.app} at {settings.api_url}.")
            self.stdout.flush()
            dispatcher.serve()
        self.stdout.write("Dispatcher ended; machines finish their runs by themselves.")


def _client() -> MachinesClient:
    try:
        return open_client()
    except ConfigurationError as error:
        raise CommandError(str(error)) from error


def _settings() -> conf.Settings:
    try:
        return conf.need("app", "api_token", "image")
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
