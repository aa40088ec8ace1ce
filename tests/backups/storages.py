"""S3 on loopback: moto's server over real HTTP, and what it was asked."""

import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEY, SECRET = "AKIAWORKSHOP", "s3-secret-5c1e"
CAREFUL = {
    "signature_version": "s3v4",
    "s3": {"addressing_style": "path"},
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "retries": {"max_attempts": 2, "mode": "standard"},
}
"""As docs/how-to/back-up-and-restore.md tells it for stores that are not Amazon's."""


@dataclass
class Bucket:
    """A bucket of that server."""

    requests: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request, by WSGI's names, with REQUEST_METHOD and PATH_INFO."""

    name: str = field(default_factory=lambda: f"backups-{secrets.token_hex(6)}")
    """Of its own, because all servers of a process are one to moto."""

    def __post_init__(self) -> None:
        app = DomainDispatcherApplication(create_backend_app)

        def noted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            self.requests.append({name: value for name, value in environ.items() if isinstance(value, str)})
            return app(environ, start_response)  # type: ignore[no-any-return]

        self._server = make_server("127.0.0.1", 0, noted, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.client = boto3.client("s3", config=Config(**CAREFUL), **self._where())
        self.client.create_bucket(Bucket=self.name)

    def _where(self) -> dict[str, str]:
        return {
            "endpoint_url": self.url,
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET,
            "region_name": "us-east-1",
        }

    def storage(self, **options: Any) -> dict[str, Any]:
        """An entry of STORAGES."""
        known = {"bucket_name": self.name, "access_key": KEY, "secret_key": SECRET, "endpoint_url": self.url}
        known |= {"region_name": "us-east-1", "file_overwrite": False, "client_config": Config(**CAREFUL)}
        return {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": {**known, **options}}

    def keys(self) -> list[str]:
        return sorted(each["Key"] for each in self.client.list_objects_v2(Bucket=self.name).get("Contents", []))

    def read(self, key: str) -> bytes:
        with self.client.get_object(Bucket=self.name, Key=key)["Body"] as body:
            return bytes(body.read())

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def uploads(self) -> list[str]:
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]

    def end(self) -> None:
        self.client.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
