"""A small project whose tasks run on machines in the tests. Everything it needs comes by environment."""

import json
import os
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.workshop.queues import QUEUES


def _database(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": parts.path,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 30,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            },
        }
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "CONN_MAX_AGE": 60,
    }


ALLOWED_HOSTS = ["127.0.0.1"]
SECRET_KEY = "only for tests"
USE_TZ = True
ROOT_URLCONF = "tests.workshop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": _database(os.environ["DATABASE_URL"])}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "machinequeue",
    "tests.workshop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# How long machines of the default queue wait for more: tests that look at many runs need not boot one for each.
DEFAULT_QUEUE = {"idle_timeout": float(os.environ.get("WORKSHOP_IDLE", "0"))}
TASKS = {"default": {"BACKEND": "machinequeue.MachineBackend", "QUEUES": {**QUEUES, "default": DEFAULT_QUEUE}}}
MACHINEQUEUE = {
    "HEARTBEAT_SECONDS": 1,
    "LEASE_SECONDS": 5,
    "LEAKED_SECONDS": 1,
    "STATE_DIR": os.environ.get("WORKSHOP_STATE", ""),
    **json.loads(os.environ.get("WORKSHOP_SETTINGS", "{}")),
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {"machinequeue": {"handlers": ["console"], "level": "INFO"}},
}
