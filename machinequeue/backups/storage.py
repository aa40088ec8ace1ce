"""STORAGES["dbbackup"]: where backups are kept, written and read a piece at a time."""

import contextlib
import hashlib
import io
import json
import re
from pathlib import Path
from typing import IO, Any

from django.core.files.base import ContentFile, File
from django.core.files.storage import InvalidStorageError, Storage, storages

from machinequeue.backups.streams import PIECE
from machinequeue.errors import BackupRefuted, ConfigurationError

ALIAS = "dbbackup"
SIDECAR = ".metadata"


def open_storage() -> Storage:
    """The storage for backups. Raises ConfigurationError when there is none."""
    try:
        return storages[ALIAS]
    except InvalidStorageError as error:
        raise ConfigurationError(
            f"STORAGES has no {ALIAS!r}, where backups would be kept: {error} "
            "docs/how-to/back-up-and-restore.md shows one for a folder and one for S3."
        ) from error


def put(storage: Storage, name: str, source: io.RawIOBase) -> str:
    """Store what the source gives; the name that the storage chose.

    An error of the source ends it before a storage for objects completes the upload; a folder keeps half a file, which
    `remove` is for.
    """
    with io.BufferedReader(source, PIECE) as content:
        return storage.save(name, File(content, name=name))


def describe(storage: Storage, name: str, facts: dict[str, Any]) -> None:
    """Write what dbbackup's own dbrestore looks for, and what a restore without our rows needs, beside a backup."""
    storage.delete(name + SIDECAR)
    storage.save(name + SIDECAR, ContentFile(json.dumps(facts, indent=1).encode(), name=name + SIDECAR))


def description(storage: Storage, name: str) -> dict[str, Any]:
    """What is written beside a backup; empty when nothing is, or only half of it: its writer was killed."""
    if not storage.exists(name + SIDECAR):
        return {}
    with storage.open(name + SIDECAR, "rb") as file:
        try:
            read = json.loads(file.read())
        except ValueError:
            return {}
    return read if isinstance(read, dict) else {}


def remove(storage: Storage, name: str) -> None:
    """Rid the storage of a backup, whole or half, and of what is beside it."""
    storage.delete(name)
    storage.delete(name + SIDECAR)
    _abort_uploads(storage, name)


def _abort_uploads(storage: Storage, name: str) -> None:
    """S3 keeps, and bills, the parts of an upload whose writer was killed, though no listing shows them."""
    bucket = getattr(storage, "bucket", None)
    if bucket is None or not hasattr(bucket, "multipart_uploads"):
        return
    location = str(getattr(storage, "location", "")).strip("/")
    key = f"{location}/{name}" if location else name
    with contextlib.suppress(Exception):  # a store may not offer it, or not allow it: then its own rules end them
        for upload in bucket.multipart_uploads.filter(Prefix=key):
            upload.abort()


def stored_names() -> list[str]:
    """The backups that the storage itself lists, newest first: the database need not be there."""
    storage = open_storage()
    found = {Path(name).name for name in storage.listdir("")[1]}
    described = [name for name in found if name + SIDECAR in found]
    return sorted(described, key=lambda name: re.findall(r"\d{4}-\d{2}-\d{2}-\d{6}", name)[-1:], reverse=True)


def get(storage: Storage, name: str, target: Path, *, size: int | None, sha256: str) -> None:
    """Download a backup into a file. Raises BackupRefuted when it is gone, or not what was stored."""
    if not storage.exists(name):
        raise BackupRefuted(
            f"{name} is not in the storage: something else removed it, or the name is wrong. "
            "manage.py mq_backups --stored lists what is there."
        )
    with target.open("wb") as file:
        _copy(storage, name, file)
    found = target.stat().st_size
    if size is not None and found != size:
        raise BackupRefuted(
            f"{name} has {found} bytes in the storage; {size} were written. It was truncated or replaced."
        )
    with target.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and checksum != sha256:
        raise BackupRefuted(
            f"{name} is damaged: its checksum is {checksum[:12]}… in the storage, and was {sha256[:12]}… when written."
        )


def _copy(storage: Storage, name: str, target: IO[bytes]) -> None:
    with storage.open(name, "rb") as source:
        remote: Any = getattr(source, "obj", None)
        if remote is not None and hasattr(remote, "download_fileobj"):
            # django-storages' own read() keeps the whole object in memory unless AWS_S3_MAX_MEMORY_SIZE is set.
            remote.download_fileobj(target, Config=getattr(storage, "transfer_config", None))
            return
        for piece in source.chunks(PIECE):
            target.write(piece)


def probe(storage: Storage) -> None:
    """Write, read and remove a small file. Raises what the storage raises."""
    name = storage.save("machinequeue-probe", ContentFile(b"probe"))
    try:
        with storage.open(name, "rb") as file:
            if file.read() != b"probe":
                raise OSError("it gave back something else than was written")
    finally:
        storage.delete(name)
