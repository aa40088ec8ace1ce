"""The workshop with backups, for machines and for processes that are limited or killed. The storage is in the
environment: a folder in BACKUPS, or a bucket by the names that Fly's Tigris extension sets.
"""

import os
from typing import Any

from botocore.config import Config

from tests.backups.storages import CAREFUL
from tests.workshop.settings import *  # noqa: F403
from tests.workshop.settings import INSTALLED_APPS as OF_THE_WORKSHOP

INSTALLED_APPS = [*OF_THE_WORKSHOP, "machinequeue.contrib.backups"]
DBBACKUP_HOSTNAME = "workshop"


def _storage() -> dict[str, Any]:
    if "BACKUPS" in os.environ:
        options: dict[str, Any] = {"location": os.environ["BACKUPS"]}
        return {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": options}
    options = {
        "bucket_name": os.environ["BUCKET_NAME"],
        "endpoint_url": os.environ["AWS_ENDPOINT_URL_S3"],
        "access_key": os.environ["AWS_ACCESS_KEY_ID"],
        "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "region_name": os.environ["AWS_REGION"],
        "client_config": Config(**CAREFUL),
    }
    return {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": options}


STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "dbbackup": _storage(),
}
