"""How the demo site reads its environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from demo_site.databases import database_from_url

ROOT = Path(__file__).resolve().parents[2]
PRINT = """
from django.conf import settings
print(settings.DEBUG, settings.ALLOWED_HOSTS, settings.SECRET_KEY, getattr(settings, "SECURE_SSL_REDIRECT", False))
"""


def _settings(state_dir: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {
        "PATH": os.environ["PATH"],
        "DEMO_STATE_DIR": str(state_dir),
        "DJANGO_SETTINGS_MODULE": "demo_site.settings",
    }
    return subprocess.run(
        [sys.executable, "-c", PRINT], cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False
    )


def test_a_postgres_url() -> None:
    read = database_from_url("postgres://ada:p%40ss@db.example:6543/shop?sslmode=require")
    assert (read["HOST"], read["PORT"], read["NAME"]) == ("db.example", "6543", "shop")
    assert (read["USER"], read["PASSWORD"], read["OPTIONS"]) == ("ada", "p@ss", {"sslmode": "require"})


def test_a_sqlite_url_makes_the_folder(tmp_path: Path) -> None:
    read = database_from_url(f"sqlite:///{tmp_path}/new%20folder/shop.sqlite3")
    assert read["NAME"] == tmp_path / "new folder" / "shop.sqlite3"
    assert read["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert (tmp_path / "new folder").is_dir()


def test_another_scheme_is_refused_without_its_password() -> None:
    with pytest.raises(ImproperlyConfigured, match="'mysql'") as caught:
        database_from_url("mysql://ada:hidden-word@db/shop")
    assert "hidden-word" not in str(caught.value)


def test_development_needs_no_environment_and_keeps_its_key(tmp_path: Path) -> None:
    first, second = (_settings(tmp_path).stdout for _ in range(2))
    assert first.startswith("True ['localhost'")
    assert first == second
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o600


def test_on_fly_nothing_is_open_by_itself(tmp_path: Path) -> None:
    refused = _settings(tmp_path, FLY_APP_NAME="prints")
    assert "SECRET_KEY is not set" in refused.stderr
    told = _settings(tmp_path, FLY_APP_NAME="prints", SECRET_KEY="given").stdout
    assert told == "False ['localhost', '127.0.0.1', '[::1]', 'prints.fly.dev'] given True\n"
