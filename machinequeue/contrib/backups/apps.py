"""Declare the schedule, and the checks of what would make it fail."""

from importlib import import_module

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.utils.translation import gettext_lazy as _

from machinequeue import conf


class BackupsConfig(AppConfig):
    name = "machinequeue.contrib.backups"
    label = "machinequeue_backups"
    verbose_name = _("Backups")

    def ready(self) -> None:
        if conf.is_runner_command():
            return  # a machine imports the task that it runs
        from machinequeue.contrib.backups import checks  # it knows models

        register(checks.check_settings, "machinequeue")
        register(checks.check_world, Tags.database, deploy=True)
        import_module("machinequeue.contrib.backups.tasks")
