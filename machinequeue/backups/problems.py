"""What would make the next backup fail, found before the night."""

import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import django
from django.apps import apps
from django.conf import settings as django_settings
from django.core.files.storage import InvalidStorageError, storages
from django.db import DatabaseError, connections

from machinequeue import conf
from machinequeue.records import backups

PAGE = "docs/how-to/back-up-and-restore.md"


@dataclass(frozen=True)
class Problem:
    """What is wrong with the backups that are to come, and what to do."""

    id: str
    """Of the system check that shows it, as in machinequeue.W020."""
    sentence: str
    remedy: str
    serious: bool = True
    """Whether the next backup would fail; False: it would work, but not as it should."""


def preflight(database: str = "default") -> list[Problem]:
    """Everything that can be found out before a backup of the database. Never raises; asks database and storage."""
    found = in_settings()
    return found if any(each.serious for each in found) else [*found, *in_the_world(database)]


def in_settings() -> list[Problem]:
    """What settings alone tell: nothing is asked, nothing is opened."""
    return [*_packages(), *_storage_settings(), *_names(), *_encryption(), *_mail()]


def in_the_world(database: str = "default") -> list[Problem]:
    """What the database's server, the installed programs, the disk and the storage tell."""
    return [*_programs(database), *_disk(database), *_storage()]


# Settings -------------------------------------------------------------------------------------------------------------


def _packages() -> Iterator[Problem]:
    if find_spec("dbbackup") is None:
        yield Problem(
            "machinequeue.E020",
            "Backups need the package django-dbbackup, which is not installed.",
            "pip install machinequeue[backups]",
        )


def _storage_settings() -> Iterator[Problem]:
    known: Any = getattr(django_settings, "STORAGES", {}).get("dbbackup")
    if known is None:
        yield Problem(
            "machinequeue.E021",
            "STORAGES has no 'dbbackup', where backups would be kept.",
            f"Add a folder or a bucket: {PAGE} shows both.",
        )
        return
    options = known.get("OPTIONS") or {}
    elsewhere = options.get("endpoint_url") or getattr(django_settings, "AWS_S3_ENDPOINT_URL", None)
    wanted = getattr(options.get("client_config"), "request_checksum_calculation", None)
    if "s3" in str(known.get("BACKEND")) and elsewhere and wanted != "when_required":
        yield Problem(
            "machinequeue.W023",
            f"STORAGES['dbbackup'] is an S3 store that is not Amazon's ({elsewhere}), and boto3 sends checksums that "
            "some of them refuse.",
            f"Give it a client_config with request_checksum_calculation='when_required': {PAGE} shows it.",
            serious=False,
        )


def _names() -> Iterator[Problem]:
    settings = conf.settings()
    for alias in settings.backup_databases:
        if alias not in connections.settings:
            yield Problem(
                "machinequeue.E022",
                f"MACHINEQUEUE['BACKUP_DATABASES'] names {alias!r}, which DATABASES has not.",
                conf.suggest(alias, connections.settings).strip(),
            )
    lane = conf.backup_lane(settings)
    if lane["queue_name"] != settings.backup_queue:
        yield Problem(
            "machinequeue.W024",
            f"MACHINEQUEUE['BACKUP_QUEUE'] is {settings.backup_queue!r}, which TASKS[{lane['backend']!r}]['QUEUES'] "
            f"has not; backups go to {lane['queue_name']!r}.",
            "Name a queue that is there.",
            serious=False,
        )
    if not getattr(django_settings, "DBBACKUP_HOSTNAME", "") and not settings.app:
        yield Problem(
            "machinequeue.W020",
            f"Backups are named after the host ({socket.gethostname()}), and each machine has another name.",
            "Set DBBACKUP_HOSTNAME, to the name of the site for instance.",
            serious=False,
        )


def _encryption() -> Iterator[Problem]:
    if not conf.settings().backup_encrypt:
        return
    if not getattr(django_settings, "DBBACKUP_GPG_RECIPIENT", ""):
        yield Problem(
            "machinequeue.E023",
            "MACHINEQUEUE['BACKUP_ENCRYPT'] is on, but DBBACKUP_GPG_RECIPIENT names no key.",
            "Set it to a key's fingerprint, or turn BACKUP_ENCRYPT off.",
        )
    if shutil.which("gpg") is None:
        yield Problem(
            "machinequeue.E024",
            "MACHINEQUEUE['BACKUP_ENCRYPT'] is on, but gpg is not installed here.",
            "Install gnupg in the image.",
        )


def _mail() -> Iterator[Problem]:
    if django.VERSION < (6, 1) or not apps.is_installed("dbbackup"):
        return
    if getattr(django_settings, "DBBACKUP_SEND_EMAIL", True):
        yield Problem(
            "machinequeue.W021",
            "On Django 6.1 dbbackup's own commands hide why they failed: its mail handler raises AttributeError first.",
            "Set DBBACKUP_SEND_EMAIL = False. Backups of machinequeue report failures without it.",
            serious=False,
        )


# The world ------------------------------------------------------------------------------------------------------------


def _programs(database: str) -> Iterator[Problem]:
    if connections[database].vendor != "postgresql":
        return
    client = major_of("pg_dump")
    if client is None:
        yield Problem(
            "machinequeue.E025",
            "pg_dump is not installed here, or does not run.",
            "Install postgresql-client of the server's version in the image.",
        )
        return
    try:
        connections[database].ensure_connection()
        server = int(getattr(connections[database], "pg_version")) // 10_000  # noqa: B009 - PostgreSQL's alone has it
    except DatabaseError as error:
        yield Problem("machinequeue.E026", f"The database {database!r} cannot be reached: {error}", "See DATABASES.")
        return
    if client < server:
        yield Problem(
            "machinequeue.E027",
            f"pg_dump is of PostgreSQL {client} and the server of {server}: pg_dump refuses a newer server.",
            f"Install postgresql-client-{server} in the image.",
        )


def major_of(program: str) -> int | None:
    """The major version of a program of PostgreSQL on PATH; None when it is not there or does not say."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(found.group(1)) if found else None


def _disk(database: str) -> Iterator[Problem]:
    try:
        last = backups.newest(database)
    except DatabaseError:
        return  # said before
    needed = 2 * ((last.size_bytes or 0) if last is not None else 0)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < needed:
        yield Problem(
            "machinequeue.W022",
            f"{free / 1e6:.0f} MB are free in {tempfile.gettempdir()}, less than twice the last backup "
            f"({needed / 1e6:.0f} MB): a restore drill needs that, and a backup of SQLite.",
            "Give the machine more disk, or set TMPDIR to a bigger one.",
            serious=False,
        )


def _storage() -> Iterator[Problem]:
    from machinequeue.backups.storage import probe

    try:
        probe(storages["dbbackup"])
    except InvalidStorageError as error:
        yield Problem("machinequeue.E021", f"STORAGES['dbbackup'] cannot be used: {error}", f"See {PAGE}.")
    except Exception as error:
        yield Problem(
            "machinequeue.E028",
            f"STORAGES['dbbackup'] cannot be written and read: {type(error).__name__}: {error}",
            "See that its address and bucket are right, and that its key may list, read, write and delete.",
        )
