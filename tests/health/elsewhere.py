"""A site with health at another address."""

from django.urls import include, path

urlpatterns = [path("status/", include("machinequeue.contrib.health.urls"))]
