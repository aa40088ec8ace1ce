"""`path("ht/", include("machinequeue.contrib.health.urls"))`."""

from django.db import transaction
from django.urls import path
from django.views.decorators.http import require_safe

from machinequeue.contrib.health import probes
from machinequeue.contrib.health.views import HealthView, metrics

app_name = "machinequeue_health"

urlpatterns = [
    path("", HealthView.as_view(), name="report"),
    path("live/", require_safe(transaction.non_atomic_requests(probes.live)), name="live"),
    path("ready/", require_safe(transaction.non_atomic_requests(probes.ready)), name="ready"),
    path("metrics", require_safe(transaction.non_atomic_requests(metrics)), name="metrics"),
]
