"""An S3 bucket, read from the environment into what Django wants in STORAGES."""

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
VARIABLES = ("BUCKET_NAME", "AWS_ENDPOINT_URL_S3", "AWS_REGION", *KEYS)


def bucket_storage(environ: Mapping[str, str], *, location: str, overwrite: bool = True) -> dict[str, Any] | None:
    """The entry of STORAGES for the folder `location` of the bucket BUCKET_NAME; None when there is no BUCKET_NAME.

    The names are those that `fly storage create` sets. Raises ImproperlyConfigured when the keys are missing.
    """
    if not (bucket := environ.get("BUCKET_NAME")):
        return None
    if missing := [name for name in KEYS if not environ.get(name)]:
        raise ImproperlyConfigured(
            f"BUCKET_NAME is set, but not {' and '.join(missing)}. `fly storage create` sets all of them."
        )
    from botocore.config import Config

    return {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "bucket_name": bucket,
            "location": location,
            "endpoint_url": environ.get("AWS_ENDPOINT_URL_S3") or None,
            "region_name": environ.get("AWS_REGION") or "auto",
            "access_key": environ[KEYS[0]],
            "secret_key": environ[KEYS[1]],
            "default_acl": None,
            "file_overwrite": overwrite,
            "client_config": Config(
                signature_version="s3v4",
                # Stores other than Amazon's refuse the checksums that boto3 adds by itself.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"max_attempts": 5, "mode": "standard"},
            ),
        },
    }
