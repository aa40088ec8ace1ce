"""The app, for its templates and static files."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class HealthConfig(AppConfig):
    name = "machinequeue.contrib.health"
    label = "machinequeue_health"
    verbose_name = _("Health of the machine queue")
