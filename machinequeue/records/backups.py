"""Backups and restore drills: what was stored, whether it was proven to restore, and what is in the storage no more."""

import uuid
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from machinequeue.lifecycle import FINISHED, BackupKind, BackupStatus, DrillStatus
from machinequeue.models import Backup, RestoreDrill, TaskRun
from machinequeue.records import sql

ABANDONED = timedelta(days=1)
"""A backup or drill that runs without a run of ours, and for so long, has lost its process."""
LOST = "its process ended without a word: killed, or its machine was lost"


def _backups() -> QuerySet[Backup]:
    return Backup.objects.using(sql.alias())


def _drills() -> QuerySet[RestoreDrill]:
    return RestoreDrill.objects.using(sql.alias())


# Backups --------------------------------------------------------------------------------------------------------------


def start(*, database: str, kind: str, run_id: str | None, **facts: Any) -> Backup:
    """A backup begins. `run_id` is the run that makes it, None outside of runs.

    An earlier try of the same run ended without a word, for a run is executed once at a time.
    """
    key = _run(run_id)
    with transaction.atomic(using=sql.alias()):
        if key is not None:
            _fail(_backups().filter(run_id=key, kind=kind, database=database, status=BackupStatus.RUNNING), LOST)
        backup = _backups().create(database=database, kind=kind, run_id=key, **facts)
    return _backups().get(pk=backup.pk)


def call(pk: Any, name: str) -> bool:
    """Its file will have this name, which nothing in the storage has: what is found under it later is its own."""
    return bool(_backups().filter(pk=pk, status=BackupStatus.RUNNING, name="").update(name=name))


def _run(run_id: str | None) -> uuid.UUID | None:
    """The key of the run, if it is a row: an inline backend's results are not."""
    key = uuid.UUID(run_id) if run_id else None
    return key if key is not None and TaskRun.objects.using(sql.alias()).filter(pk=key).exists() else None


def succeed(
    pk: Any, *, seconds: float, size_bytes: int, sha256: str, counts: dict[str, int], server_version: str = ""
) -> bool:
    """The file is in the storage, whole. False when the backup was given up before."""
    return bool(
        _backups()
        .filter(pk=pk, status=BackupStatus.RUNNING)
        .update(
            status=BackupStatus.SUCCEEDED,
            finished_at=Now(),
            seconds=seconds,
            size_bytes=size_bytes,
            sha256=sha256,
            counts=counts,
            server_version=server_version,
        )
    )


def fail(pk: Any, error: str, seconds: float | None = None) -> bool:
    """The backup failed for this reason. False when it had ended before."""
    return bool(_fail(_backups().filter(pk=pk, status=BackupStatus.RUNNING), error, seconds))


def _fail(rows: QuerySet[Backup], error: str, seconds: float | None = None) -> int:
    return rows.update(status=BackupStatus.FAILED, finished_at=Now(), error=error, seconds=seconds)


def adopt(pk: Any, *, size_bytes: int, sha256: str, counts: dict[str, int], server_version: str) -> bool:
    """A backup that was given up turned out to be whole: only its process ended before it could say so.

    So it is with the newest row of every database that was restored from a backup: in the copy, it still runs.
    """
    facts = {"size_bytes": size_bytes, "sha256": sha256, "counts": counts, "server_version": server_version}
    lost = _backups().filter(pk=pk, status=BackupStatus.FAILED, removed_at__isnull=True)
    return bool(lost.update(status=BackupStatus.SUCCEEDED, error="", **facts))


def removed(pk: Any) -> bool:
    """The storage does not hold its file any more. False when that was known."""
    return bool(_backups().filter(pk=pk, removed_at__isnull=True).update(removed_at=Now()))


def settle() -> int:
    """Fail the backups and drills whose process is known to have ended without a word; how many."""
    over = Q(run__status__in=FINISHED) | Q(run__isnull=True, started_at__lt=Now() - ABANDONED)
    lost_backups = _backups().filter(over, status=BackupStatus.RUNNING)
    lost_drills = _drills().filter(over, status=DrillStatus.RUNNING)
    count = _fail(_backups().filter(pk__in=[each.pk for each in lost_backups], status=BackupStatus.RUNNING), LOST)
    for drill in lost_drills:
        count += finish_drill(drill.pk, DrillStatus.FAILED, LOST)
    return count


def forget(older: timedelta = timedelta(days=730)) -> int:
    """Forget rows of files that have long been removed; how many backups."""
    old = _backups().filter(removed_at__lt=Now() - older)
    count = old.count()
    old.delete()
    return count


def get(pk: Any) -> Backup | None:
    return _backups().filter(pk=pk).first()


def named(name: str) -> Backup | None:
    """The newest backup whose file has this name."""
    return _backups().filter(name=name).order_by("-pk").first()


def stored(database: str | None = None, kind: str = BackupKind.DATABASE) -> list[Backup]:
    """What succeeded and is still in the storage, newest first; of one database, or of all."""
    rows = _backups().filter(status=BackupStatus.SUCCEEDED, kind=kind, removed_at__isnull=True)
    return list((rows if database is None else rows.filter(database=database)).order_by("-pk"))


def leftovers() -> list[Backup]:
    """Failed backups whose file, or half of it, may be in the storage."""
    return list(_backups().filter(status=BackupStatus.FAILED, removed_at__isnull=True).exclude(name="").order_by("pk"))


def newest(database: str = "default", kind: str = "database") -> Backup | None:
    """The newest that succeeded and is still in the storage."""
    rows = _backups().filter(database=database, kind=kind, status=BackupStatus.SUCCEEDED, removed_at__isnull=True)
    return rows.order_by("-pk").first()


def last_failure(database: str | None = None) -> Backup | None:
    """The newest that failed, with its `error`; of one database, or of all."""
    rows = _backups().filter(status=BackupStatus.FAILED)
    return (rows if database is None else rows.filter(database=database)).order_by("-pk").first()


def recent(limit: int = 20) -> list[Backup]:
    """The newest of every kind and status, newest first; each with `now`, the database's clock."""
    return list(_backups().annotate(now=Now()).order_by("-pk")[:limit])


# Drills ---------------------------------------------------------------------------------------------------------------


def start_drill(backup_pk: Any, run_id: str | None) -> RestoreDrill:
    """A drill of this backup begins. An earlier try of the same run ended without a word."""
    key = _run(run_id)
    with transaction.atomic(using=sql.alias()):
        if key is not None:
            for lost in _drills().filter(run_id=key, backup_id=backup_pk, status=DrillStatus.RUNNING):
                finish_drill(lost.pk, DrillStatus.FAILED, LOST)
        drill = _drills().create(backup_id=backup_pk, run_id=key)
    return _drills().get(pk=drill.pk)


def finish_drill(
    pk: Any,
    status: DrillStatus,
    reason: str,
    *,
    method: str = "",
    differences: dict[str, list[int | None]] | None = None,
    seconds: float | None = None,
) -> bool:
    """What the drill found out. False when it had ended before."""
    return bool(
        _drills()
        .filter(pk=pk, status=DrillStatus.RUNNING)
        .update(
            status=status,
            reason=reason,
            method=method,
            differences=differences,
            seconds=seconds,
            finished_at=Now(),
        )
    )


def last_drill(database: str | None = None) -> RestoreDrill | None:
    """The newest drill that ended, with its `backup`; of one database, or of all."""
    rows = _drills().exclude(status=DrillStatus.RUNNING).select_related("backup")
    return (rows if database is None else rows.filter(backup__database=database)).order_by("-pk").first()


def drills_of(backup_pks: list[Any]) -> dict[Any, RestoreDrill]:
    """The newest drill of each of these backups that has one."""
    return {drill.backup_id: drill for drill in _drills().filter(backup_id__in=backup_pks).order_by("pk")}


def newest_proven(backup_pks: list[Any]) -> set[Any]:
    """Of these backups the newest one that a drill has proven, if there is one."""
    proven = _drills().filter(backup_id__in=backup_pks, status=DrillStatus.PROVEN).order_by("-backup_id").first()
    return {proven.backup_id} if proven is not None else set()


def age(backup: Backup) -> float:
    """Seconds since it was started, by the database's clock."""
    row = _backups().filter(pk=backup.pk).annotate(age=Now() - F("started_at")).values_list("age", flat=True).first()
    return row.total_seconds() if row is not None else 0.0


def drill_of(pk: Any) -> RestoreDrill | None:
    """A drill, with its `backup`."""
    return _drills().filter(pk=pk).select_related("backup").first()
