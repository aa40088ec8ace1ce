"""The workshop as an app."""

from django.apps import AppConfig


class WorkshopConfig(AppConfig):
    name = "tests.workshop"

    def ready(self) -> None:
        from tests.workshop import faults

        faults.install()
