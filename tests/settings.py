"""Settings of the tests. TEST_DATABASE chooses what stands behind the ORM: `postgres` (the default) or `sqlite`."""

import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests import services
from tests.workshop.queues import QUEUES

SCRATCH = Path(tempfile.gettempdir()) / f"machinequeue-tests-{os.getpid()}"


def _database() -> dict[str, Any]:
    if os.environ.get("TEST_DATABASE", "postgres") == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": SCRATCH / "tests.sqlite3",
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 30,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            },
            # A file, because threads and processes of a test share it.
            "TEST": {"NAME": str(SCRATCH / "test_tests.sqlite3")},
        }
    server = urlsplit(services.postgres())
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": f"mq_{os.getpid()}",
        "USER": unquote(server.username or ""),
        "PASSWORD": unquote(server.password or ""),
        "HOST": server.hostname or "",
        "PORT": str(server.port or ""),
        "TEST": {"NAME": f"mq_test_{os.getpid()}"},
    }


SCRATCH.mkdir(parents=True, exist_ok=True)
SECRET_KEY = "only for tests"
DEBUG = False
ALLOWED_HOSTS = ["testserver", "127.0.0.1", "localhost"]
USE_TZ = True
TIME_ZONE = "UTC"
ROOT_URLCONF = "demo_site.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": _database()}
MEDIA_ROOT = SCRATCH / "media"
MEDIA_URL = "media/"
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "machinequeue",
    "machinequeue.contrib.health",
    "demo_site.store",
]
MIDDLEWARE = [
    "machinequeue.contrib.health.middleware.HealthCheckMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "machinequeue.serverless.ServerlessMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
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

STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"allow_overwrite": True}},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
MACHINEQUEUE = {"STATE_DIR": str(SCRATCH / "state")}
TASKS = {
    "default": {
        "BACKEND": "machinequeue.MachineBackend",
        "QUEUES": QUEUES,
    }
}
