"""DATABASE_URL, read into what Django wants in DATABASES."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

# Several processes write one file: they queue for the write lock when a transaction begins, not in its middle.
SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 30,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
}


def database_from_url(url: str) -> dict[str, Any]:
    """The entry of DATABASES for postgres://user:password@host:port/name?option=value or sqlite:///path.

    Raises ImproperlyConfigured for any other scheme, without repeating the URL, which may hold a password.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "sqlite":
            path = Path(unquote(parts.path.removeprefix("/"))).absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
            return {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": SQLITE_OPTIONS}
        case "postgres" | "postgresql":
            return {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": unquote(parts.path.removeprefix("/")),
                "USER": unquote(parts.username or ""),
                "PASSWORD": unquote(parts.password or ""),
                "HOST": unquote(parts.hostname or ""),
                "PORT": str(parts.port or ""),
                "CONN_MAX_AGE": 60,
                "CONN_HEALTH_CHECKS": True,
                "OPTIONS": dict(parse_qsl(parts.query)),
            }
        case scheme:
            raise ImproperlyConfigured(
                f"DATABASE_URL begins with {scheme or 'no scheme'!r}; the demo site knows postgres:// and sqlite:///."
            )
