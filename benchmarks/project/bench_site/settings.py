"""A typical project on PostgreSQL. The benchmark names the servers; BENCH_PEERS=1 adds the peers."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "only for measuring"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
STATIC_URL = "static/"
ROOT_URLCONF = "bench_site.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "machinequeue",
    "bench_site",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
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

_server = urlsplit(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _server.path.removeprefix("/"),
        "USER": unquote(_server.username or ""),
        "PASSWORD": unquote(_server.password or ""),
        "HOST": _server.hostname or "",
        "PORT": str(_server.port or ""),
        "CONN_MAX_AGE": 60,
    }
}

TASKS = {
    "default": {
        "BACKEND": "machinequeue.MachineBackend",
        "QUEUES": {
            "default": {},
            "warm": {"idle_timeout": 600, "max_machines": 1},
            "warm_shared": {"idle_timeout": 600, "max_machines": 1, "isolation": "shared"},
            "drain": {"idle_timeout": 600, "max_machines": 2},
            "drain_shared": {"idle_timeout": 600, "max_machines": 2, "isolation": "shared"},
        },
    }
}

if os.environ.get("BENCH_PEERS"):
    INSTALLED_APPS += ["procrastinate.contrib.django", "peers"]
    CELERY_BROKER_URL = os.environ["REDIS_URL"]
    CELERY_RESULT_BACKEND = os.environ["BENCH_RESULTS_URL"]
