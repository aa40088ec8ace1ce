"""The reconciler's table: what it does about each difference between rows and machines, and what it leaves alone."""

import datetime
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from machinequeue.dispatch.launch import Launcher, site
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.schema import CreateRequest
from machinequeue.models import Attempt, Circuit, Machine, TaskRun
from machinequeue.reconciler import Reconciler
from machinequeue.records import claims, dispatchers, machines
from machinequeue.records.claims import Claimant
from tests.integration.conftest import reserved
from tests.waiting import until
from tests.workshop import tasks
from tests.world import APP, IMAGE, TOKEN, World


@pytest.fixture
def client(empty_shop: World) -> Iterator[MachinesClient]:
    dispatchers.seen("this test")
    with empty_shop.emulator.client() as made:
        yield made
        for machine in made.list():
            made.destroy(machine.id, force=True)


def ago(seconds: float) -> Any:
    return timezone.now() - datetime.timedelta(seconds=seconds)


def create(client: MachinesClient, row: Machine, *command: str, auto_destroy: bool = True) -> Machine:
    """A machine of the emulator for this row; it only sleeps, so that nothing checks in."""
    config = {
        "image": IMAGE,
        "init": {"cmd": list(command or ("sleep", "600"))},
        "auto_destroy": auto_destroy,
        "restart": {"policy": "no"},
        "metadata": {"mq_machine": row.name, "mq_site": site()},
    }
    Machine.objects.filter(pk=row.pk).update(app=APP)
    machines.requesting(row)
    made = client.create(CreateRequest(name=row.name, region="iad", config=config))
    machines.created(row, fly_id=made.id, region="iad", state=made.state, request_ids=[])
    row.refresh_from_db()
    return row


def running(client: MachinesClient, *command: str, auto_destroy: bool = True) -> tuple[Any, Machine]:
    """A run that its row says is running on a machine that sleeps."""
    result = tasks.add.enqueue(1)
    row = create(client, reserved(result), *command, auto_destroy=auto_destroy)
    boot_id = secrets.token_hex(16)
    assert machines.check_in(row.name, boot_id=boot_id, fly_id=row.fly_id, region="iad", stages={})
    by = Claimant(row.pk, boot_id, row.backend, row.queue, row.spec_key)
    assert claims.claim(by, lease_seconds=45, life_seconds=3600)
    return result, row


def survey(client: MachinesClient, reconciler: Reconciler | None = None) -> list[tuple[str, str, str]]:
    return [(each.verb, each.subject, each.why) for each in (reconciler or Reconciler()).survey(Launcher(client))]


def repaired(client: MachinesClient, row: Machine) -> Machine:
    """After rounds of the reconciler, until the row is gone."""
    reconciler = Reconciler()

    def gone() -> bool:
        reconciler(Launcher(client))
        row.refresh_from_db()
        return row.status == "gone"

    until(gone, 60, lambda: (row.status, row.reason))
    return row


def test_nothing_is_done_where_nothing_is_wrong(client: MachinesClient) -> None:
    result, row = running(client)
    client.wait(row.fly_id, "started")
    assert survey(client) == []
    row.refresh_from_db()
    assert (row.state, row.started_at is not None) == ("started", True)
    assert result.why().startswith("running: attempt 1")


def test_a_machine_that_is_past_its_deadline_is_destroyed_and_its_run_goes_on(client: MachinesClient) -> None:
    result, row = running(client)
    Machine.objects.update(deadline_at=ago(1))
    assert survey(client) == [("give up", row.name, "it is past its deadline")]
    assert repaired(client, row).reason == "given up: it is past its deadline"
    assert TaskRun.objects.get(pk=result.id).status == "READY"
    assert Attempt.objects.get().status == "lost"
    assert client.get(row.fly_id).state == "destroyed"


def test_a_run_whose_claim_just_expired_is_left_alone(client: MachinesClient) -> None:
    _, row = running(client)
    client.wait(row.fly_id, "started")
    TaskRun.objects.update(lease_expires_at=ago(3600))
    reconciler = Reconciler()
    assert survey(client, reconciler) == [], "nobody watched for that hour"
    assert survey(client, reconciler) == []


def test_a_run_that_stays_silent_while_it_is_watched_loses_its_machine(client: MachinesClient, settings: Any) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "SILENT_SECONDS": 1}
    _, row = running(client)
    client.wait(row.fly_id, "started")
    TaskRun.objects.update(lease_expires_at=ago(1))
    reconciler = Reconciler()
    assert survey(client, reconciler) == []
    # Looked at often: rounds far apart prove nothing about the time between them.
    found = until(lambda: survey(client, reconciler), 60)
    assert found == [("give up", row.name, "it sends no heartbeat")]


def test_a_machine_that_does_not_answer_a_cancel_is_destroyed_and_the_run_is_cancelled(client: MachinesClient) -> None:
    result, row = running(client)
    client.wait(row.fly_id, "started")
    assert result.cancel()
    assert survey(client) == []
    TaskRun.objects.update(cancel_requested_at=ago(61))
    assert survey(client) == [("give up", row.name, "it does not answer a cancel")]
    repaired(client, row)
    result.refresh()
    assert result.run_status == "CANCELLED"


def test_a_machine_that_rests_is_destroyed(client: MachinesClient) -> None:
    result, row = running(client, "true", auto_destroy=False)
    client.wait(row.fly_id, "stopped")
    assert survey(client) == [("destroy", row.name, "it is stopped, and its work is over")]
    repaired(client, row)
    assert TaskRun.objects.get(pk=result.id).status == "READY"


def test_a_machine_that_ends_before_it_checks_in_is_a_failed_boot_with_the_end_of_its_log(
    client: MachinesClient,
) -> None:
    result = tasks.add.enqueue(1)
    script = "echo ModuleNotFoundError: no module named shop; exit 3"
    row = create(client, reserved(result), "sh", "-c", script)
    client.wait(row.fly_id, "destroyed")
    repaired(client, row)
    circuit = Circuit.objects.get()
    assert (circuit.kind, circuit.failures, circuit.image) == ("boot", 1, row.image)
    assert "it ended before it claimed a run (exit code 3)" in circuit.reason
    assert "ModuleNotFoundError: no module named shop" in circuit.reason
    assert TaskRun.objects.get(pk=result.id).status == "READY"


@pytest.mark.parametrize("how", ["never started", "silent since its start"])
def test_a_machine_that_does_not_check_in_is_given_up(client: MachinesClient, how: str) -> None:
    row = create(client, reserved(tasks.add.enqueue(1)))
    client.wait(row.fly_id, "started")
    assert survey(client) == []
    if how == "never started":
        Machine.objects.update(requested_at=ago(601), started_at=None, state="created")
        # Seen as started in this very round, it gets its time for checking in.
        assert survey(client) == []
        Machine.objects.update(started_at=ago(121))
    else:
        Machine.objects.update(started_at=ago(121))
    assert survey(client) == [("give up", row.name, "it did not check in within 120 s of its start")]
    Circuit.objects.create(kind="boot", image=row.image, spec_key=row.spec_key, failures=1)
    assert survey(client) == [], "after a failure it gets twice the time"
    Circuit.objects.all().delete()
    repaired(client, row)
    assert Circuit.objects.get().failures == 1, "counted once"


def test_a_machine_that_fly_does_not_start_is_given_up(client: MachinesClient, empty_shop: World) -> None:
    row = create(client, reserved(tasks.add.enqueue(1)))
    client.stop(row.fly_id)
    client.wait(row.fly_id, "destroyed")
    Machine.objects.update(requested_at=ago(601))
    [first, *_] = survey(client)
    assert first[:2] == ("note gone", row.name)


def test_an_answer_that_was_lost_is_adopted(client: MachinesClient) -> None:
    row = create(client, reserved(tasks.add.enqueue(1)))
    fly_id = row.fly_id
    Machine.objects.update(fly_id="", created_at=None, status="reserved")
    assert survey(client) == [("adopt", row.name, f"Fly has it as {fly_id}")]
    Reconciler()(Launcher(client))
    row.refresh_from_db()
    assert (row.fly_id, row.status) == (fly_id, "created")


def test_a_machine_without_a_row_is_destroyed_when_it_is_old_enough(client: MachinesClient, settings: Any) -> None:
    row = create(client, reserved(tasks.add.enqueue(1)))
    client.wait(row.fly_id, "started")
    Machine.objects.all().delete()
    assert survey(client) == []
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "LEAKED_SECONDS": 0}
    assert survey(client) == [("destroy", row.name, "it has no row")]
    Reconciler()(Launcher(client))
    assert client.get(row.fly_id).state in ("destroying", "destroyed")


def test_a_machine_whose_row_is_gone_is_destroyed_and_strangers_are_not(client: MachinesClient, settings: Any) -> None:
    row = create(client, reserved(tasks.add.enqueue(1)))
    client.wait(row.fly_id, "started")
    config = {"image": IMAGE, "init": {"cmd": ["sleep", "600"]}, "metadata": {"mq_site": site(), "mq_machine": "other"}}
    stranger = client.create(CreateRequest(name="copied-our-metadata", region="iad", config=config))
    Machine.objects.update(status="gone", gone_at=ago(61))
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "LEAKED_SECONDS": 0}
    reconciler = Reconciler()
    assert survey(client, reconciler) == [("destroy", row.name, "its row says that it is gone")]
    assert survey(client, reconciler) == [], "with no machine in the rows, Fly is asked once a minute"
    client.destroy(stranger.id, force=True)


def test_an_attempt_without_a_machine_is_lost(client: MachinesClient) -> None:
    result, _ = running(client)
    Machine.objects.all().delete()
    [repair] = Reconciler().survey(Launcher(client))
    assert (repair.verb, repair.why) == ("lose", "its machine is gone")
    repair.do()
    assert TaskRun.objects.get(pk=result.id).status == "READY"


def test_nothing_is_ended_while_the_api_is_away(client: MachinesClient) -> None:
    _, row = running(client)
    Machine.objects.update(deadline_at=ago(1))
    TaskRun.objects.update(lease_expires_at=ago(9999))
    with MachinesClient(APP, token=TOKEN, base_url="http://127.0.0.1:9", pause=lambda _: None) as away:
        assert survey(away) == []
    row.refresh_from_db()
    assert row.status == "busy"


def test_an_empty_list_is_no_absence(client: MachinesClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = running(client)
    Machine.objects.update(created_at=ago(60))
    monkeypatch.setattr(client, "list", lambda **_: [])
    assert survey(client) == []
    monkeypatch.setattr(client, "list", lambda **_: [client.get(row.fly_id)])
    assert survey(client) == []


def test_the_command_says_what_it_would_do_and_does_it(
    client: MachinesClient, empty_shop: World, settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    _, row = running(client)
    settings.MACHINEQUEUE = {
        **settings.MACHINEQUEUE,
        "APP": APP,
        "API_TOKEN": TOKEN,
        "API_URL": empty_shop.emulator.url,
    }
    Machine.objects.update(deadline_at=ago(1))
    call_command("mq_reconcile", dry_run=True)
    assert capsys.readouterr().out == f"give up {row.name}: it is past its deadline\n1 repair to be done.\n"
    row.refresh_from_db()
    assert row.status == "busy"
    call_command("mq_reconcile")
    until(lambda: client.get(row.fly_id).state == "destroyed", 60)
    call_command("mq_reconcile")
    assert "note gone" in capsys.readouterr().out
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "API_TOKEN": "wrong"}
    with pytest.raises(CommandError, match="token"):
        call_command("mq_reconcile", dry_run=True)


def test_one_machine_that_cannot_be_read_keeps_nobody_else_from_repair(
    client: MachinesClient, empty_shop: World
) -> None:
    _, unreadable = running(client)
    _, late = running(client)
    client.destroy(unreadable.fly_id, force=True)
    Machine.objects.filter(pk=late.pk).update(deadline_at=ago(3600))
    with empty_shop.emulator.faults.add("server_error", "get", machine=unreadable.fly_id, status=504):
        quick = empty_shop.emulator.client(read_tries=1)
        with quick:
            assert ("give up", late.name, "it is past its deadline") in survey(quick)


def test_a_repair_that_stumbles_is_logged_and_the_others_are_done(
    client: MachinesClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, first = running(client)
    _, second = running(client)
    Machine.objects.update(deadline_at=ago(1))
    retire = machines.retire

    def stumbles(machine: Machine, *args: Any, **kwargs: Any) -> bool:
        if machine.pk == first.pk:
            raise ValueError("a bug")
        return retire(machine, *args, **kwargs)

    monkeypatch.setattr(machines, "retire", stumbles)
    Reconciler()(Launcher(client))
    second.refresh_from_db()
    assert second.status == "retiring"
    assert "a bug" in caplog.text


def test_a_machine_that_checked_in_after_we_looked_is_left_alone(client: MachinesClient) -> None:
    row = create(client, reserved(tasks.add.enqueue(1)))
    client.wait(row.fly_id, "started")
    Machine.objects.update(started_at=ago(121))
    [repair] = Reconciler().survey(Launcher(client))
    assert machines.check_in(row.name, boot_id="b" * 32, fly_id=row.fly_id, region="iad", stages={})
    repair.do()
    assert client.get(row.fly_id).state == "started"
    assert not Circuit.objects.exists()


def test_a_machine_that_worked_and_ended_after_we_looked_is_no_failed_boot(client: MachinesClient) -> None:
    result = tasks.add.enqueue(1)
    row = create(client, reserved(result), "true")
    client.wait(row.fly_id, "destroyed")
    [repair] = Reconciler().survey(Launcher(client))
    boot_id = secrets.token_hex(16)
    assert machines.check_in(row.name, boot_id=boot_id, fly_id=row.fly_id, region="iad", stages={})
    by = Claimant(row.pk, boot_id, row.backend, row.queue, row.spec_key)
    held = claims.claim(by, lease_seconds=45, life_seconds=3600)
    assert held is not None
    claims.succeed(held, 1, claims.Report())
    repair.do()
    row.refresh_from_db()
    assert row.status == "gone"
    assert not Circuit.objects.exists()


@pytest.mark.parametrize(("status", "does"), [("idle", "waits for work"), ("retiring", "is to leave")])
def test_a_machine_that_executes_nothing_and_says_nothing_is_given_up(
    client: MachinesClient, settings: Any, status: str, does: str
) -> None:
    """A runner that froze between saying that it leaves and leaving had its machine until its deadline."""
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "SILENT_SECONDS": 1}
    _, row = running(client)
    client.wait(row.fly_id, "started")
    TaskRun.objects.all().delete()
    Machine.objects.update(status=status, seen_at=ago(3600))
    reconciler = Reconciler()
    assert survey(client, reconciler) == []
    found = until(lambda: survey(client, reconciler), 60)
    assert found == [("give up", row.name, f"it {does} and says nothing")]
    for repair in reconciler.survey(Launcher(client)):
        repair.do()
    until(lambda: client.get(row.fly_id).state == "destroyed")


def test_a_retiring_machine_that_still_executes_a_run_is_left_to_it(client: MachinesClient) -> None:
    running(client)
    Machine.objects.update(status="retiring", seen_at=ago(3600))
    assert machines.mute(45) == []
