"""The nightly backup and its proof: dumps of the shop's tables, S3 over HTTP, machines that are processes."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection

from demo_site.store.models import Product, Purchase
from demo_site.store.seeding import seed_purchases
from machinequeue.contrib.backups import tasks
from machinequeue.models import Backup, OutputChunk, RestoreDrill, TaskRun
from tests.backups.storages import KEY, SECRET, Bucket
from tests.backups.test_taking import a_program
from tests.waiting import until
from tests.world import World, world

POSTGRESQL = connection.vendor == "postgresql"
PURCHASES = "public.store_purchase" if POSTGRESQL else "store_purchase"
PATIENCE = 90


@pytest.fixture
def more(bucket: Bucket) -> dict[str, str]:
    """What the machines know: the app's settings, and the bucket by the names that Fly's Tigris extension sets."""
    return {
        "DJANGO_SETTINGS_MODULE": "tests.backups.project",
        "PYTHONPATH": str(Path.cwd()),
        "BUCKET_NAME": bucket.name,
        "AWS_ENDPOINT_URL_S3": bucket.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture
def shop(tables: None, django_db_blocker: Any, tmp_path: Path, more: dict[str, str], redis: str) -> Iterator[World]:
    """A world with 12 purchases and a dispatcher."""
    with django_db_blocker.unblock(), world(tmp_path, redis, more=more) as made:
        seed_purchases(12)
        try:
            yield made
        finally:
            made.end_dispatchers()
            Purchase.objects.all().delete()
            Product.objects.all().delete()
            Group.objects.all().delete()


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> str:
    return "" if connection.vendor == "sqlite" else str(request.getfixturevalue("redis_url"))


def drills_of(result: Any, shop: World) -> list[Any]:
    drills = [tasks.prove.get_result(each) for each in result.return_value["drills"]]
    shop.finish(*drills, seconds=PATIENCE)
    return drills


def test_a_night(shop: World, bucket: Bucket) -> None:
    shop.dispatcher()
    result = tasks.back_up.enqueue()
    shop.finish(result, seconds=PATIENCE)
    assert str(result.status) == "SUCCESSFUL", (result.errors, shop.said())
    made = Backup.objects.get()
    assert result.return_value["made"] == {"default": made.name}
    assert (made.status, str(made.run_id)) == ("succeeded", result.id)
    assert made.counts is not None
    assert made.counts[PURCHASES] == 12
    assert made.name.startswith("default-workshop-20")
    assert bucket.keys() == [made.name, f"{made.name}.metadata"]
    assert len(bucket.read(made.name)) == made.size_bytes

    [proof] = drills_of(result, shop)
    assert str(proof.status) == "SUCCESSFUL", (proof.errors, shop.said())
    drill = RestoreDrill.objects.get()
    assert (drill.status, drill.backup, str(drill.run_id)) == ("proven", made, proof.id)
    assert proof.worker_ids != result.worker_ids, "another machine proves it"
    spec = TaskRun.objects.get(pk=result.id).spec
    assert (spec["memory_mb"], spec["isolation"]) == (1024, "machine")
    shop.all_gone(PATIENCE)
    assert_no_secret(shop)


def assert_no_secret(shop: World) -> None:
    """No row, log or metadata holds the key of the bucket."""
    said = shop.said() + "".join(OutputChunk.objects.values_list("text", flat=True))
    rows = [str(each) for model in (TaskRun, Backup, RestoreDrill) for each in model.objects.values()]
    assert SECRET not in f"{said}{rows}"


def test_a_damaged_backup_fails_the_drill_and_says_so(shop: World, bucket: Bucket) -> None:
    shop.dispatcher()
    result = tasks.back_up.enqueue()
    shop.finish(result, seconds=PATIENCE)
    drills_of(result, shop)
    name = result.return_value["made"]["default"]
    content = bytearray(bucket.read(name))
    content[len(content) // 2] ^= 0xFF
    bucket.write(name, bytes(content))
    again = tasks.prove.enqueue()
    shop.finish(again, seconds=PATIENCE)
    assert str(again.status) == "FAILED"
    assert again.errors[0].exception_class_path == "machinequeue.errors.BackupRefuted"
    assert "is damaged: its checksum is" in again.errors[0].traceback
    newest = RestoreDrill.objects.latest("pk")
    assert newest.status == "failed"
    assert newest.reason.startswith(f"{name} is damaged")


@pytest.mark.slow
@pytest.mark.skipif(not POSTGRESQL, reason="pg_dump is PostgreSQL's")
def test_a_machine_killed_in_the_middle_of_a_dump_leaves_nothing(
    tables: None,
    django_db_blocker: Any,
    tmp_path: Path,
    more: dict[str, str],
    redis: str,
    bucket: Bucket,
) -> None:
    """The first pg_dump hangs in the middle; its machine is killed; the second makes it good."""
    half, real = tmp_path / "half", shutil.which("pg_dump")
    script = (
        f"import os, signal, sys\nif os.path.exists({str(half)!r}):\n    os.execv({real!r}, sys.argv)\n"
        f"sys.stdout.buffer.write(b'PGDMP' + bytes(20_000_000))\nsys.stdout.flush()\n"
        f"open({str(half)!r}, 'w').close()\nsignal.pause()\n"
    )
    folder = a_program(tmp_path / "bin", "pg_dump", script)
    path = f"{folder}:{os.environ['PATH']}"
    with django_db_blocker.unblock(), world(tmp_path, redis, more={**more, "PATH": path}) as shop:
        shop.dispatcher()
        result = tasks.back_up.enqueue()
        until(half.exists, PATIENCE, shop.said)
        until(bucket.uploads, PATIENCE, shop.said)
        result.refresh()
        with shop.emulator.client() as client:
            client.signal(result.worker_ids[0], "SIGKILL")
        shop.finish(result, seconds=PATIENCE)
        assert [each["status"] for each in result.history] == ["lost", "succeeded"], shop.said()
        first, second = Backup.objects.order_by("pk")
        assert (first.status, second.status) == ("failed", "succeeded")
        assert "machine was lost" in first.error
        assert bucket.keys() == [second.name, f"{second.name}.metadata"]
        assert bucket.uploads() == []
        drills_of(result, shop)
        assert RestoreDrill.objects.get().status == "proven"
        shop.all_gone(PATIENCE)
