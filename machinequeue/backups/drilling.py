"""Prove that a backup restores: download it, restore it, count."""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from machinequeue import telemetry
from machinequeue.backups import encryption, storage, streams
from machinequeue.backups.restoring import Restored, restore_postgresql, restore_sqlite
from machinequeue.errors import BackupError, BackupRefuted, NotProven
from machinequeue.lifecycle import DrillStatus
from machinequeue.records import Backup, RestoreDrill, backups

SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """What a drill found out."""

    status: DrillStatus
    reason: str
    method: str = ""
    differences: dict[str, list[int | None]] | None = None


def drill(database: str = "default", *, name: str = "", run_id: str | None = None) -> RestoreDrill:
    """Restore the newest backup of the database, or the named one, and compare; the drill's row says what was found.

    Raises BackupRefuted when there is no such backup. `run_id` is the run that does so.
    """
    backups.settle()
    backup = backups.named(name) if name else backups.newest(database)
    if backup is None or backup.sha256 == "":
        raise BackupRefuted(
            f"There is no backup {name!r}; manage.py mq_backups lists them."
            if name
            else f"There is no backup of the database {database!r}; manage.py mq_backup makes one."
        )
    row = backups.start_drill(backup.pk, run_id)
    began = time.monotonic()
    try:
        found = _find_out(backup)
    except BaseException as error:
        reason = f"The drill itself failed: {type(error).__name__}: {str(error).strip()}"
        backups.finish_drill(row.pk, DrillStatus.FAILED, reason, seconds=time.monotonic() - began)
        raise
    backups.finish_drill(
        row.pk,
        found.status,
        found.reason,
        method=found.method,
        differences=found.differences,
        seconds=time.monotonic() - began,
    )
    event = "failed" if found.status == DrillStatus.FAILED else found.status.value
    telemetry.emit(f"drill.{event}", backup=backup.name, method=found.method, reason=found.reason)
    ended = backups.drill_of(row.pk)
    assert ended is not None
    return ended


def _find_out(backup: Backup) -> Finding:
    try:
        with tempfile.TemporaryDirectory(prefix="mq-drill-") as folder:
            file = fetch(backup, Path(folder))
            restored = _restore(backup, file)
    except NotProven as error:
        return Finding(DrillStatus.NOT_PROVEN, str(error), "listing" if "listed" in str(error) else "")
    except BackupRefuted as error:
        return Finding(DrillStatus.FAILED, str(error))
    except BackupError as error:
        return Finding(DrillStatus.FAILED, f"{backup.name}: {error}")
    return compare(backup.counts or {}, restored)


def fetch(backup: Backup, folder: Path) -> Path:
    """Download a backup into the folder, checked, decrypted and decompressed.

    Raises NotProven without the room or the key for it, BackupError when it is damaged.
    """
    _need_room(backup, folder)
    file = folder / "stored"
    storage.get(storage.open_storage(), backup.name, file, size=backup.size_bytes, sha256=backup.sha256)
    return unpack(file, backup.name, encrypted=backup.encrypted)


def retrieve(name: str, folder: Path) -> Path:
    """As `fetch`, by what is written beside the backup in the storage: the database need not be there at all."""
    place = storage.open_storage()
    facts = storage.description(place, name)
    file = folder / "stored"
    storage.get(place, name, file, size=facts.get("size_bytes"), sha256=facts.get("sha256", ""))
    return unpack(file, name, encrypted=name.endswith(".gpg"))


def unpack(file: Path, name: str, *, encrypted: bool) -> Path:
    """Decrypt and decompress a downloaded file, beside it."""
    if encrypted:
        clear = file.with_name("clear")
        encryption.decrypt(file, clear)
        file.unlink()
        file = clear
    if ".gz" in Path(name).suffixes:
        plain = file.with_name("plain")
        with file.open("rb") as source, plain.open("wb") as target:
            streams.expand(source, target)
        file.unlink()
        file = plain
    return file


def _need_room(backup: Backup, folder: Path) -> None:
    free, needed = shutil.disk_usage(folder).free, 2 * (backup.size_bytes or 0)
    if free < needed:
        raise NotProven(
            f"{free / 1e6:.0f} MB are free in {folder.parent}, and {needed / 1e6:.0f} MB are needed to restore a "
            f"backup of {(backup.size_bytes or 0) / 1e6:.0f} MB. Give the machine more disk."
        )


def _restore(backup: Backup, file: Path) -> Restored:
    if backup.kind != "database":
        raise NotProven("A drill restores databases; media files were downloaded and their checksum is right.")
    if ".sqlite3" in Path(backup.name).suffixes:
        return restore_sqlite(file)
    return restore_postgresql(file, backup.server_version, backup.database)


def compare(recorded: dict[str, int], restored: Restored) -> Finding:
    """Whether each table has as many rows as when it was backed up."""
    tables = sorted(recorded.keys() | restored.counts.keys())
    pairs: dict[str, list[int | None]] = {each: [recorded.get(each), restored.counts.get(each)] for each in tables}
    # Of tables that a backup excludes, the shape is restored and no row; nobody counted them.
    differences = {table: pair for table, pair in pairs.items() if pair[0] != pair[1] and pair != [None, 0]}
    if not differences:
        rows = sum(restored.counts.values())
        return Finding(DrillStatus.PROVEN, f"{len(tables)} tables, {rows} rows: all as backed up.", restored.method)
    shown = [f"{table} has {_rows(found)} instead of {_rows(was)}" for table, (was, found) in differences.items()]
    more = f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    reason = f"What was restored differs from what was backed up: {'; '.join(shown[:SHOWN])}{more}."
    return Finding(DrillStatus.FAILED, reason, restored.method, differences)


def _rows(count: int | None) -> str:
    return "no such table" if count is None else f"{count} row{'' if count == 1 else 's'}"
