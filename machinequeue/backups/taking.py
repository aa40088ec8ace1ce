"""Make a backup: dump, store, record; remove what nobody wants to keep."""

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings as django_settings
from django.core.files.storage import Storage
from django.db import DatabaseError
from django.utils import timezone

from machinequeue import conf, telemetry
from machinequeue.backups import encryption, storage
from machinequeue.backups.dump import Dump, connector, open_dump
from machinequeue.backups.media import open_media
from machinequeue.backups.retention import Rule, kept
from machinequeue.backups.streams import Compressed, Measured
from machinequeue.errors import BackupError, BackupFailed, ConfigurationError
from machinequeue.lifecycle import BackupKind, BackupStatus
from machinequeue.records import Backup, backups


def back_up(database: str = "default", *, run_id: str | None = None) -> Backup:
    """Back up a database to STORAGES["dbbackup"]; its row. `run_id` is the run that does so.

    Raises BackupFailed, with the reason in the row too, and ConfigurationError before there is a row.
    """
    known = connector(database)
    name = _unlike(known.generate_filename(server_name()), known.extension)
    beside = {
        "engine": known.connection.settings_dict["ENGINE"],
        "connector": f"{type(known).__module__}.{type(known).__qualname__}",
    }
    return _make(_Order(BackupKind.DATABASE, name, run_id, database, beside), open_dump(database))


def back_up_media(*, run_id: str | None = None) -> Backup:
    """Back up the files of the default storage; its row. Raises as `back_up` does."""
    from dbbackup.utils import filename_generate

    name = _unlike(filename_generate("tar", servername=server_name(), content_type="media"), "tar")
    return _make(_Order(BackupKind.MEDIA, name, run_id), open_media())


def server_name() -> str:
    """What backups are named after: DBBACKUP_HOSTNAME, else the Fly app: each machine has a host name of its own."""
    fixed = getattr(django_settings, "DBBACKUP_HOSTNAME", "")
    return str(fixed or conf.settings().app or socket.gethostname())


def _unlike(name: str, extension: str) -> str:
    """The name and a random part: its time has no fraction, and two machines may back up in the same second."""
    stem = name.removesuffix(f".{extension}")
    return f"{stem}-{secrets.token_hex(2)}{name[len(stem) :]}"


@dataclass(frozen=True)
class _Order:
    """What is to be backed up, and what to write beside it."""

    kind: BackupKind
    name: str
    run_id: str | None
    database: str = ""
    beside: dict[str, Any] = field(default_factory=dict)


def _make(order: _Order, opening: contextlib.AbstractContextManager[Dump]) -> Backup:
    began = time.monotonic()
    encrypt = conf.settings().backup_encrypt
    if encrypt:
        encryption.recipient()
    place = storage.open_storage()
    gzip = not order.name.endswith(".psql.bin")
    known: dict[str, Any] = {"database": order.database, "kind": order.kind, "run_id": order.run_id}
    backup = backups.start(**known, compressed=True, encrypted=encrypt)
    try:
        with _explained():
            sweep(place)
            name = place.get_available_name(f"{order.name}{'.gz' if gzip else ''}{'.gpg' if encrypt else ''}")
            backups.call(backup.pk, name)
        with _explained(), opening as dump:
            measured = _store(place, name, dump, gzip, encrypt)
            facts: dict[str, Any] = {"size_bytes": measured.size, "sha256": measured.sha256, "counts": dump.counts}
            facts["server_version"] = dump.server_version
            storage.describe(place, name, {**order.beside, **facts})
        _succeed(backup, facts, time.monotonic() - began)
    except BaseException as error:
        _give_up(place, order, backup, error, time.monotonic() - began)
        raise
    telemetry.emit("backup.succeeded", backup=name, bytes=measured.size, seconds=f"{time.monotonic() - began:.1f}")
    made = backups.get(backup.pk)
    assert made is not None
    return made


def _succeed(backup: Backup, facts: dict[str, Any], seconds: float) -> None:
    """Raises BackupFailed when others gave it up meanwhile, unless it counts as whole all the same."""
    if backups.succeed(backup.pk, seconds=seconds, **facts) or backups.adopt(backup.pk, **facts):
        return
    found = backups.get(backup.pk)
    if found is None or found.status != BackupStatus.SUCCEEDED or found.removed_at is not None:
        raise BackupFailed("Another backup took it for lost and removed its file, while it was being made. Try again.")


def _store(place: Storage, name: str, dump: Dump, gzip: bool, encrypt: bool) -> Measured:
    stream: Any = dump.stream
    if gzip:
        stream = Compressed(stream)
    if encrypt:
        stream = encryption.encrypted(stream)
    measured = Measured(stream)
    stored = storage.put(place, name, measured)
    if stored != name:
        storage.remove(place, stored)
        raise BackupFailed(f"The storage called it {stored} instead of {name}: another backup was made just now.")
    return measured


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Whatever fails, as BackupFailed with a sentence."""
    try:
        yield
    except (BackupError, ConfigurationError):
        raise
    except DatabaseError as error:
        raise BackupFailed(f"The database could not be read: {_plain(error)}") from error
    except OSError as error:
        raise BackupFailed(f"The backup could not be stored: {_plain(error)}") from error
    except Exception as error:
        raise BackupFailed(f"The storage refused the backup: {type(error).__name__}: {_plain(error)}") from error


def _plain(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


def _give_up(place: Storage, order: _Order, backup: Backup, error: BaseException, seconds: float) -> None:
    backups.fail(backup.pk, _plain(error) if isinstance(error, BackupError) else repr(error), seconds)
    telemetry.emit("backup.failed", database=order.database, kind=order.kind, error=_plain(error))
    begun = backups.get(backup.pk)
    if begun is not None and begun.name:
        _remove(place, begun)


def _remove(place: Storage, backup: Backup) -> bool:
    try:
        storage.remove(place, backup.name)
    except Exception as error:
        telemetry.emit("backup.unreachable", backup=backup.name, error=_plain(error))
        return False
    return backups.removed(backup.pk)


def sweep(place: Storage | None = None) -> int:
    """Rid the storage of the halves that failed backups left in it; how many. What is whole is kept, and said to be."""
    place = place or storage.open_storage()
    backups.settle()
    return sum(_remove(place, backup) for backup in backups.leftovers() if not _adopt(place, backup))


def _adopt(place: Storage, backup: Backup) -> bool:
    """What stands beside a backup was written when the backup was whole."""
    facts = storage.description(place, backup.name)
    known = {key: facts.get(key) for key in ("size_bytes", "sha256", "counts", "server_version")}
    return None not in known.values() and backups.adopt(backup.pk, **known)  # type: ignore[arg-type]


def prune() -> int:
    """Rid the storage of backups that neither an age nor a count keeps; how many. The newest proven one stays."""
    place = storage.open_storage()
    removed = 0
    for database in {backup.database for backup in backups.stored()}:
        removed += _prune(place, backups.stored(database), _count("DBBACKUP_CLEANUP_KEEP"))
    removed += _prune(place, backups.stored(kind=BackupKind.MEDIA), _count("DBBACKUP_CLEANUP_KEEP_MEDIA"))
    backups.forget()
    return removed


def _prune(place: Storage, stored: list[Backup], newest: int) -> int:
    settings = conf.settings()
    rule = Rule(newest, settings.backup_daily, settings.backup_weekly, settings.backup_monthly)
    keep = kept([(each.pk, timezone.localtime(each.started_at)) for each in stored], rule)
    keep |= backups.newest_proven([each.pk for each in stored])
    also = getattr(django_settings, "DBBACKUP_CLEANUP_KEEP_FILTER", lambda name: False)
    return sum(_remove(place, each) for each in stored if each.pk not in keep and not also(each.name))


def _count(setting: str) -> int:
    return int(getattr(django_settings, setting, getattr(django_settings, "DBBACKUP_CLEANUP_KEEP", 10)))
