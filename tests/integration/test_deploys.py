"""Releases come and go: machines of another image retire, runs wait for migrations, some machines are kept."""

import json
import signal
from pathlib import Path

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import override_settings

from machinequeue.dispatch.migrations import Unmigrated
from machinequeue.models import Machine
from machinequeue.records import dispatchers
from tests.integration.test_trouble import started
from tests.waiting import until
from tests.workshop import tasks
from tests.world import IMAGE, World


def test_machines_of_another_image_finish_their_run_and_leave(empty_shop: World, tmp_path: Path) -> None:
    empty_shop.dispatcher()
    gate = tmp_path / "gate"
    result = tasks.wait_for.using(queue_name="warm").enqueue(str(gate))
    until(lambda: started(gate), 60, empty_shop.said)
    idle = tasks.add.using(queue_name="warm", memory_mb=768).enqueue(1)
    empty_shop.finish(idle)
    until(lambda: Machine.objects.filter(status="idle").exists(), 60, empty_shop.said)
    dispatchers.announce("a newer image", 99)
    until(lambda: Machine.objects.filter(status="gone").count() == 1, 60, empty_shop.said)
    busy = Machine.objects.exclude(status="gone").get()
    until(lambda: Machine.objects.get(pk=busy.pk).status == "retiring", 60, empty_shop.said)
    gate.touch()
    empty_shop.finish(result)
    until(lambda: not Machine.objects.exclude(status="gone").exists(), 60, empty_shop.said)
    assert [each["status"] for each in result.history] == ["succeeded"], "its run was not disturbed"
    assert Machine.objects.get(pk=busy.pk).reason == "its image is not the current one"


def test_a_kept_machine_waits_and_is_replaced_when_it_is_killed(empty_shop: World) -> None:
    keep = {"WORKSHOP_KEPT": "1"}
    empty_shop.dispatcher(**keep, WORKSHOP_SETTINGS=json.dumps({"ENV": keep}))
    first = until(lambda: Machine.objects.filter(queue="kept", status="idle").first(), 60, empty_shop.said)
    results = [tasks.add.using(queue_name="kept").enqueue(number) for number in range(3)]
    empty_shop.finish(*results)
    assert {result.worker_ids[0] for result in results} == {first.fly_id}
    with empty_shop.emulator.client() as client:
        client.signal(first.fly_id, "SIGKILL")
    # One launched for the runs, while the first was alive, may leave; one that sees that it is alone stays.
    until(lambda: Machine.objects.get(pk=first.pk).status == "gone", 60, empty_shop.said)
    second = until(
        lambda: Machine.objects.filter(queue="kept", status="idle").exclude(pk=first.pk).first(), 30, empty_shop.said
    )
    empty_shop.end_dispatchers()
    with empty_shop.emulator.client() as client:
        client.stop(second.fly_id)
        client.wait(second.fly_id, "destroyed")


@pytest.mark.django_db
def test_runs_wait_with_the_reason_until_migrations_are_applied() -> None:
    applied = MigrationRecorder(connection).migration_qs.filter(app="machinequeue")
    latest = applied.order_by("-name").values_list("name", flat=True)[0]
    with override_settings(MACHINEQUEUE={"WAIT_FOR_MIGRATIONS": True}):
        look = Unmigrated()
        applied.filter(name=latest).delete()
        assert look().startswith(f"migrations are not applied: machinequeue.{latest}")
        MigrationRecorder(connection).record_applied("machinequeue", latest)
        assert look() != "", "not asked more often than every few seconds"
        assert Unmigrated()() == ""
    applied.filter(name=latest).delete()
    assert Unmigrated()() == "", "off unless it is asked for"


def test_a_dispatcher_of_an_unmigrated_image_launches_nothing(empty_shop: World) -> None:
    recorder = MigrationRecorder(connection)
    applied = recorder.migration_qs.filter(app="machinequeue")
    latest = applied.order_by("-name").values_list("name", flat=True)[0]
    try:
        applied.filter(name=latest).delete()
        dispatcher = empty_shop.dispatcher(WORKSHOP_SETTINGS='{"WAIT_FOR_MIGRATIONS": true}')
        result = tasks.add.enqueue(1)
        until(lambda: "migrations are not applied" in result.why(), 60, result.why)
        assert [*Machine.objects.values()] == [], dispatcher.said
    finally:
        recorder.record_applied("machinequeue", latest)
    empty_shop.finish(result)
    assert dispatcher.end(signal.SIGTERM) == 0
    assert Machine.objects.get().image == IMAGE
