"""Register the app, its checks and its signals."""

from importlib import import_module
from typing import Any

from django.apps import AppConfig, apps
from django.utils.translation import gettext_lazy as _

from machinequeue import conf


class MachineQueueConfig(AppConfig):
    name = "machinequeue"
    verbose_name = _("Machine queue")
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        super().import_models()
        if conf.is_runner_command():
            _leave_admin_undiscovered()

    def ready(self) -> None:
        if conf.is_runner_command():
            return  # a machine runs no system checks
        import_module("machinequeue.compat")  # importing django.tasks registers its own system check
        import_module("machinequeue.checks")


def _leave_admin_undiscovered() -> None:
    """Give a task machine Django's own "admin without autodiscovery": it shows no pages, so it imports no admin.py."""
    admin: Any = apps.app_configs.get("admin")
    if admin is not None and type(admin).__name__ == "AdminConfig":
        admin.__class__ = import_module("django.contrib.admin.apps").SimpleAdminConfig
