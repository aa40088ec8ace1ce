"""Machines for code that is not ours, as rows: one dispatcher takes each, and nobody's are given up under a claim."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from machinequeue.containers.driver import BURY_SECONDS, Containers
from machinequeue.dispatch.launch import Launcher
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.models import Machine, TaskRun
from machinequeue.records import machines
from tests.integration.conftest import claimed, reserved
from tests.waiting import until
from tests.workshop import tasks

pytestmark = pytest.mark.django_db


def created() -> Any:
    row = reserved(tasks.add.enqueue(1))
    Machine.objects.filter(pk=row.pk).update(status="created", deadline_at=Now() + timedelta(hours=1))
    return Machine.objects.get(pk=row.pk)


def test_one_dispatcher_takes_a_machine() -> None:
    row = created()
    life = machines.take(row, "one")
    assert life is not None
    assert 0 < life <= 3600
    assert machines.take(row, "another") is None
    assert machines.take(row, "one") is None, "not twice, either"
    assert Machine.objects.get(pk=row.pk).boot_id == "one"


def test_a_machine_whose_time_is_over_is_not_taken() -> None:
    row = created()
    Machine.objects.filter(pk=row.pk).update(deadline_at=Now() - timedelta(seconds=1))
    assert machines.take(row, "one") is None


def test_a_machine_is_abandoned_when_its_dispatcher_is_gone_and_its_claim_is_over() -> None:
    held = claimed(tasks.add.enqueue(1))
    row = TaskRun.objects.get(pk=held.run_id).attempts.get().machine
    assert row is not None
    assert not machines.abandoned(row, {row.boot_id}), "its dispatcher lives"
    assert not machines.abandoned(row, {"another"}), "its claim holds"
    TaskRun.objects.filter(pk=held.run_id).update(lease_expires_at=Now() - timedelta(seconds=1))
    assert machines.abandoned(row, {"another"})
    assert not machines.abandoned(row, {row.boot_id})


@pytest.mark.django_db(transaction=True)
def test_an_api_that_does_not_answer_holds_up_no_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    row = created()
    Machine.objects.filter(pk=row.pk).update(status="retiring", spec={**row.spec, "container": {}}, fly_id="d8")
    asked, answer = [], threading.Event()

    def silence(client: MachinesClient, fly_id: str, **_: Any) -> None:
        asked.append(fly_id)
        answer.wait(60)

    monkeypatch.setattr(MachinesClient, "destroy", silence)
    with Emulator(app="shop") as emulator, emulator.client() as client:
        launcher, look_after = Launcher(client, _container_client=client), Containers()
        try:
            look_after(launcher, "one")  # comes back although no answer came
            until(lambda: asked)
            look_after._buried_at -= BURY_SECONDS
            look_after(launcher, "one")
            burials = [each for each in threading.enumerate() if each.name == "container burials"]
            assert len(burials) == 1, "one at a time"
            assert not answer.is_set()
            assert asked == ["d8"]
        finally:
            answer.set()
            look_after.close()
    until(lambda: not burials[0].is_alive())
