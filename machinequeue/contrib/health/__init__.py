"""Health for load balancers, operators and Prometheus: checks for django-health-check, and ready-made URLs.

`path("ht/", include("machinequeue.contrib.health.urls"))`, and the middleware before all others.
"""
