"""The dispatcher."""

import signal
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from machinequeue import conf
from machinequeue.dispatch.launch import Launcher
from machinequeue.dispatch.service import Dispatcher
from machinequeue.errors import ConfigurationError
from machinequeue.machines.client import MachinesClient
from machinequeue.reconciler import reconcile


class Command(BaseCommand):
    help = "Launch machines for runs that are due, until SIGTERM or SIGINT. Any number may run at once."

    def handle(self, *args: Any, **options: Any) -> None:
        settings = _settings()
        with MachinesClient(settings.app, token=settings.api_token, base_url=settings.api_url) as client:
            dispatcher = Dispatcher(Launcher(client), reconcile)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: dispatcher.stop())
            self.stdout.write(f"Dispatcher {dispatcher.name} serves app {settings.app} at {settings.api_url}.")
            self.stdout.flush()
            dispatcher.serve()
        self.stdout.write("Dispatcher ended; machines finish their runs by themselves.")


def _settings() -> conf.Settings:
    try:
        settings = conf.settings()
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
    missing = [name for name in ("app", "api_token", "image") if not getattr(settings, name)]
    if missing:
        variables = {"app": "FLY_APP_NAME", "api_token": "FLY_API_TOKEN", "image": "FLY_IMAGE_REF"}
        names = ", ".join(f"{variables[name]} (or MACHINEQUEUE[{name.upper()!r}])" for name in missing)
        raise CommandError(
            f"Not set: {names}. On Fly, FLY_APP_NAME and FLY_IMAGE_REF are there by themselves; the token is a secret "
            "made with `fly tokens create deploy`. For development set DEBUG and run manage.py mq_dev."
        )
    return settings
