"""Settings of the demo site. Everything is read from the environment; with an empty one it is a site for development.

DATABASE_URL        postgres://user:password@host:port/name, or sqlite:///path; default: a SQLite file in DEMO_STATE_DIR
DEMO_STATE_DIR      where the SQLite file, made files, cached pages and the secret key live; default: .machinequeue
                    beside manage.py
SECRET_KEY          required in production; elsewhere one is drawn once and kept in DEMO_STATE_DIR
DEBUG               1 or 0; default: 1, but 0 on Fly. With 0 the site is in production: nothing is open by itself
ALLOWED_HOSTS       names separated by commas; default: the app's own on Fly; required in production elsewhere
STATIC_ROOT         where collectstatic has put its files: their names carry hashes then, and they are sent compressed
BUCKET_NAME         an S3 bucket for made files and backups, with AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID and
                    AWS_SECRET_ACCESS_KEY, as `fly storage create` sets them; default: a folder in DEMO_STATE_DIR

machinequeue reads FLY_API_HOSTNAME, FLY_APP_NAME, FLY_API_TOKEN, FLY_IMAGE_REF and REDIS_URL itself.
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key
from django.utils.translation import gettext_lazy as _

from demo_site.buckets import bucket_storage
from demo_site.databases import database_from_url

BASE_DIR = Path(__file__).resolve().parent.parent
STATE_DIR = Path(os.environ.get("DEMO_STATE_DIR") or BASE_DIR / ".machinequeue").absolute()
FLY_APP_NAME = os.environ.get("FLY_APP_NAME", "")
DEBUG = os.environ.get("DEBUG", "0" if FLY_APP_NAME else "1").lower() in ("1", "true", "yes", "on")
COLLECTED = os.environ.get("STATIC_ROOT", "")


def _missing(name: str, example: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"{name} is not set, and DEBUG is off. Set it once for all machines: fly secrets set {name}={example}\n"
        "(For a site for development, unset FLY_APP_NAME or set DEBUG=1.)"
    )


def _secret_key() -> str:
    if given := os.environ.get("SECRET_KEY"):
        return given
    kept = STATE_DIR / "secret_key"
    if not DEBUG and not kept.exists():
        raise _missing("SECRET_KEY", "$(openssl rand -hex 32)")
    STATE_DIR.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return kept.read_text()
    with os.fdopen(descriptor, "w") as file:
        file.write(get_random_secret_key())
    return kept.read_text()


def _allowed_hosts() -> list[str]:
    if given := [name.strip() for name in os.environ.get("ALLOWED_HOSTS", "").split(",") if name.strip()]:
        return given
    own = [f"{FLY_APP_NAME}.fly.dev"] if FLY_APP_NAME else []
    if DEBUG:
        return ["localhost", "127.0.0.1", "[::1]", *own]
    if not own:
        raise _missing("ALLOWED_HOSTS", "www.example.com")
    return own


def _database_url() -> str:
    if given := os.environ.get("DATABASE_URL"):
        return given
    kept = STATE_DIR / "demo.sqlite3"
    # A file in a Fly Machine is lost with it, and no other machine sees it.
    if not DEBUG and not kept.exists():
        raise _missing("DATABASE_URL", "postgres://user:password@host:5432/name")
    return f"sqlite:///{quote(str(kept))}"


SECRET_KEY = _secret_key()
ALLOWED_HOSTS = _allowed_hosts()
ROOT_URLCONF = "demo_site.urls"
WSGI_APPLICATION = "demo_site.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "machinequeue",
    "machinequeue.contrib.health",
    "machinequeue.contrib.backups",
    "demo_site.store",
]

MIDDLEWARE = [
    "machinequeue.contrib.health.middleware.HealthCheckMiddleware",
    "django.middleware.security.SecurityMiddleware",
    *(["whitenoise.middleware.WhiteNoiseMiddleware"] if COLLECTED else []),
    "machinequeue.serverless.ServerlessMiddleware",
    *(["django.middleware.csp.ContentSecurityPolicyMiddleware"] if django.VERSION >= (6, 0) else []),
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES: list[dict[str, Any]] = [
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

DATABASES = {
    "default": database_from_url(_database_url()),
}

# Each queue is a set of machines of one size. Receipts take the smallest; a report over every purchase a bigger one.
TASKS: dict[str, Any] = {
    "default": {
        "BACKEND": "machinequeue.MachineBackend",
        "QUEUES": {
            "default": {"max_machines": 6},
            "reports": {"memory_mb": 2048, "cpus": 2, "regions": ["iad", "us"], "max_machines": 2},
            "images": {"memory_mb": 512, "max_machines": 2},
            "snippets": {"max_machines": 2, "machine_life": 300, "timeout": 10},
        },
    }
}
MACHINEQUEUE = {"STATE_DIR": str(STATE_DIR)}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "admin:login"

LANGUAGE_CODE = "en"
LANGUAGES = [("en", _("English")), ("de", _("German"))]
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = Path(COLLECTED) if COLLECTED else STATE_DIR / "static"
MEDIA_URL = "media/"
MEDIA_ROOT = STATE_DIR / "media"
STORAGES: dict[str, dict[str, Any]] = {
    # A receipt that is made again replaces the one before.
    "default": bucket_storage(os.environ, location="media")
    or {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"allow_overwrite": True}},
    "staticfiles": {
        "BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"
        if COLLECTED
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}

# Pages that look the same to everybody are kept on the disk of each web machine: near its visitors, and gone with a
# deploy. All workers of a machine share them.
CACHES: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "pages": {
        "BACKEND": "django.core.cache.backends.dummy.DummyCache"
        if DEBUG
        else "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": str(STATE_DIR / "pages"),
        "TIMEOUT": 300,
        "OPTIONS": {"MAX_ENTRIES": 2000},
    },
}
STORAGES["dbbackup"] = bucket_storage(os.environ, location="backups", overwrite=False) or {
    "BACKEND": "django.core.files.storage.FileSystemStorage",
    "OPTIONS": {"location": STATE_DIR / "backups"},
}
DBBACKUP_HOSTNAME = FLY_APP_NAME or "demo"

SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SECURE_CSP = {"default-src": ["'self'"], "img-src": ["'self'", "data:"], "frame-ancestors": ["'none'"]}
if not DEBUG:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
