"""How the demo site reads its environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from demo_site.buckets import bucket_storage
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


PRODUCTION = {
    "FLY_APP_NAME": "prints",
    "SECRET_KEY": "k" * 30 + "0123456789abcdefghijklmnopq",
    "DATABASE_URL": "postgres://ada:hidden-word@db.internal/shop",
}
BUCKET = {
    "BUCKET_NAME": "prints",
    "AWS_ENDPOINT_URL_S3": "https://fly.storage.tigris.dev",
    "AWS_ACCESS_KEY_ID": "tid_1",
    "AWS_SECRET_ACCESS_KEY": "tsec_1",
}


def test_on_fly_nothing_is_open_by_itself(tmp_path: Path) -> None:
    told = _settings(tmp_path, **PRODUCTION).stdout
    assert told == f"False ['prints.fly.dev'] {PRODUCTION['SECRET_KEY']} True\n"


@pytest.mark.parametrize("name", ["SECRET_KEY", "DATABASE_URL"])
def test_on_fly_what_is_missing_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    refused = _settings(tmp_path, **{**PRODUCTION, name: ""})
    assert refused.returncode == 1
    assert f"{name} is not set, and DEBUG is off" in refused.stderr
    assert f"fly secrets set {name}=" in refused.stderr
    assert "hidden-word" not in refused.stderr


def test_in_production_elsewhere_the_hosts_must_be_named(tmp_path: Path) -> None:
    elsewhere = {**PRODUCTION, "FLY_APP_NAME": "", "DEBUG": "0"}
    assert "ALLOWED_HOSTS is not set" in _settings(tmp_path, **elsewhere).stderr
    assert "['www.prints.example']" in _settings(tmp_path, **elsewhere, ALLOWED_HOSTS="www.prints.example").stdout


@pytest.mark.parametrize("more", [{}, BUCKET], ids=["disk", "bucket"])
def test_production_passes_the_checks_for_deployment(tmp_path: Path, more: dict[str, str]) -> None:
    kept = {
        "PATH": os.environ["PATH"],
        "DEMO_STATE_DIR": str(tmp_path),
        "STATIC_ROOT": str(tmp_path / "static"),
        "FLY_API_TOKEN": "FlyV1 fm2_only-for-tests",
        "FLY_IMAGE_REF": "registry.fly.io/prints:deployment-01",
        **PRODUCTION,
        **more,
    }
    for command in (["collectstatic", "--noinput"], ["check", "--deploy", "--fail-level", "WARNING"]):
        done = subprocess.run(
            [sys.executable, "manage.py", *command], cwd=ROOT, env=kept, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "no issues (0 silenced)" in done.stdout


def test_a_bucket_without_its_keys_is_refused() -> None:
    assert bucket_storage({}, location="media") is None
    with pytest.raises(ImproperlyConfigured, match=r"not AWS_SECRET_ACCESS_KEY\. `fly storage create`"):
        bucket_storage({**BUCKET, "AWS_SECRET_ACCESS_KEY": ""}, location="media")


def test_files_go_to_the_bucket_and_come_back() -> None:
    import boto3
    from django.core.files.base import ContentFile
    from django.core.files.storage import storages
    from django.core.files.storage.handler import StorageHandler
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environ = {**BUCKET, "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}", "AWS_REGION": "us-east-1"}
        client = boto3.client(
            "s3",
            endpoint_url=environ["AWS_ENDPOINT_URL_S3"],
            region_name="us-east-1",
            aws_access_key_id="tid_1",
            aws_secret_access_key="tsec_1",
        )
        client.create_bucket(Bucket="prints")
        made = bucket_storage(environ, location="media")
        assert made is not None
        storage = StorageHandler({**storages.backends, "default": made})["default"]
        for content in (b"first", b"again"):
            assert storage.save("receipts/1.pdf", ContentFile(content)) == "receipts/1.pdf"
        with storage.open("receipts/1.pdf") as file:
            assert file.read() == b"again"
        listed = client.list_objects_v2(Bucket="prints")["Contents"]
        assert [each["Key"] for each in listed] == ["media/receipts/1.pdf"]
        client.close()
        storage.connection.meta.client.close()
    finally:
        server.stop()
