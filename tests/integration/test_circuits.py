"""Launches that keep failing for one reason pause, with the reason; one at a time tries whether it is mended."""

import dataclasses
import datetime
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone

from machinequeue.dispatch.launch import Launcher
from machinequeue.dispatch.service import Dispatcher
from machinequeue.lifecycle import CircuitKind
from machinequeue.machines import errors
from machinequeue.models import Circuit, Machine, Queue, Release, TaskRun
from machinequeue.records import circuits, dispatchers, machines, queues, runs
from tests.integration.conftest import WISH, check_in, checked_in, claim, reserved
from tests.workshop import tasks


@pytest.fixture(autouse=True)
def _dispatcher(db: None) -> None:
    dispatchers.seen("a dispatcher")


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("woken")]


class Refusing:
    """Stands where the client is: answers every create with one error, or with a machine."""

    def __init__(self) -> None:
        self.error: errors.MachinesError | None = None

    def secrets(self) -> list[str]:
        return []

    def create(self, request: Any) -> Any:
        if self.error is not None:
            raise self.error
        return type("Created", (), {"id": request.name, "region": "iad", "state": "created", "request_id": "r"})()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.settings")
    return Refusing()


def launch(api: Refusing) -> list[Machine]:
    """Reserve and launch what the due runs need; the machines that were reserved."""
    reserved = [machine for group in runs.due_groups() for machine in queues.reserve(group, WISH).machines]
    for machine in reserved:
        if not Launcher(api).launch(machine):  # type: ignore[arg-type]
            machines.release(reserved)
            break
    return reserved


def later(seconds: float = 700) -> None:
    """Time passes for circuits and pauses."""
    past = timezone.now() - datetime.timedelta(seconds=1)
    Circuit.objects.update(next_at=past)
    Queue.objects.update(launch_after=past)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.Unauthorized("Authenticate: token validation error"), "token"),
        (errors.NotFound("app not found"), "app"),
        (errors.QuotaReached("over the allowed quota"), "quota"),
        (errors.Rejected("invalid guest"), "rejected"),
    ],
)
def test_what_an_operator_must_mend_opens_at_once_fails_no_run_and_is_probed(
    api: Refusing, error: errors.MachinesError, kind: str
) -> None:
    first, second = tasks.add.enqueue(1), tasks.add.enqueue(2)
    api.error = error
    assert launch(api)
    circuit = Circuit.objects.get()
    assert (circuit.kind, circuit.opened_at is not None) == (kind, True)
    assert launch(api) == [], "nothing more is tried"
    assert error.message in first.why()
    assert error.advice in first.why()
    assert "tried again every" in second.why()
    later()
    assert len(launch(api)) == 1, "one launch tries, though two runs wait"
    later()
    api.error = None
    assert len(launch(api)) == 1
    assert not Circuit.objects.exists()
    assert launch(api)
    assert set(TaskRun.objects.values_list("status", flat=True)) == {"READY"}


def test_a_size_that_the_task_chose_and_fly_refuses_fails_its_runs_alone(api: Refusing) -> None:
    chosen, usual = tasks.add.using(memory_mb=768).enqueue(1), tasks.add.enqueue(2)
    api.error = errors.Rejected("invalid_argument: 768 is no size")
    [group] = [group for group in runs.due_groups() if group.spec["memory_mb"] == 768]
    [machine] = queues.reserve(group, WISH).machines
    Launcher(api).launch(machine)  # type: ignore[arg-type]
    chosen.refresh()
    usual.refresh()
    assert (chosen.run_status, usual.run_status) == ("FAILED", "READY")
    assert "768 is no size" in chosen.why()
    assert not Circuit.objects.exists()


def test_an_image_that_is_not_there_yet_is_asked_for_again_and_fails_no_run(api: Refusing) -> None:
    result = tasks.add.enqueue(1)
    api.error = errors.ImageNotFound("MANIFEST_UNKNOWN")
    for _ in range(6):
        assert len(launch(api)) == 1
        later()
    assert Circuit.objects.get().opened_at is not None
    assert result.why().startswith("waiting: ")
    assert "MANIFEST_UNKNOWN" in result.why()


def test_no_capacity_for_one_size_holds_no_other_back(api: Refusing) -> None:
    big, usual = tasks.add.using(memory_mb=2048, priority=1).enqueue(1), tasks.add.enqueue(2)
    asked: list[int] = []
    create = api.create

    def full_for_big(request: Any) -> Any:
        asked.append(request.config["guest"]["memory_mb"])
        if asked[-1] == 2048:
            raise errors.NoCapacity("no capacity in iad")
        return create(request)

    api.create = full_for_big  # type: ignore[method-assign]
    for group in runs.due_groups():
        for machine in queues.reserve(group, WISH).machines:
            Launcher(api).launch(machine)  # type: ignore[arg-type]
    assert sorted(asked) == [512, 2048]
    assert "no capacity in iad" in big.why()
    assert "no capacity" not in usual.why()
    assert Circuit.objects.get().opened_at is None
    for _ in range(5):
        later()
        launch(api)
    assert Circuit.objects.get().opened_at is not None
    launch(api)
    assert "tried again every 1 min" in big.why()


@pytest.mark.parametrize(
    "text", ["402 payment required", "invalid config.env", "processes.0: unknown secret FOO", "request body too large"]
)
def test_a_refusal_of_what_no_task_can_choose_fails_no_run(api: Refusing, text: str) -> None:
    chosen = tasks.add.using(memory_mb=768).enqueue(1)
    api.error = errors.Rejected(text)
    launch(api)
    chosen.refresh()
    assert chosen.run_status == "READY"
    assert text in chosen.why()


def test_every_run_that_is_pinned_to_a_missing_image_is_refused(api: Refusing) -> None:
    api.error = errors.ImageNotFound("MANIFEST_UNKNOWN")
    with override_settings(MACHINEQUEUE={"IMAGE": "shop:1"}):
        first, second = tasks.add.using(image="same").enqueue(1), tasks.add.using(image="same", timeout=60).enqueue(2)
        for _ in range(6):
            launch(api)
            later()
        third = tasks.add.using(image="same").enqueue(3)
        launch(api)
    for result in (first, second, third):
        result.refresh()
        assert result.run_status == "FAILED"


def test_a_circuit_of_an_image_that_nobody_launches_any_more_is_forgotten() -> None:
    for image in ("shop:1", "shop:2", "shop:3"):
        circuits.failed(CircuitKind.BOOT, "no boot", image=image, spec_key="a-spec")
    with override_settings(MACHINEQUEUE={"IMAGE": "shop:2"}):
        tasks.add.using(image="same", timeout=62).enqueue(1)
    assert circuits.forget_images("shop:3") == 1
    assert {each.image for each in Circuit.objects.all()} == {"shop:2", "shop:3"}


def test_machines_that_were_launched_before_a_failure_was_known_count_once() -> None:
    earlier = runs.database_now() - datetime.timedelta(seconds=30)
    for _ in range(5):
        circuits.failed(CircuitKind.BOOT, "the database was away", image="a", spec_key="b", launched_at=earlier)
    assert Circuit.objects.get().failures == 1
    after = runs.database_now() + datetime.timedelta(seconds=1)
    circuits.failed(CircuitKind.BOOT, "again", image="a", spec_key="b", launched_at=after)
    assert Circuit.objects.get().failures == 2


def test_a_machine_that_found_nothing_to_claim_has_booted() -> None:
    by = checked_in(tasks.add.enqueue(1))
    machine = Machine.objects.get()
    Circuit.objects.create(kind="boot", image=machine.image, spec_key=machine.spec_key, failures=1)
    Circuit.objects.update(failed_at=timezone.now() - datetime.timedelta(seconds=60))
    assert circuits.mend() == 0
    machines.leaves(by.machine_id, by.boot_id, 0, "nothing is ready")
    assert circuits.mend() == 1


def test_a_launch_that_was_admitted_and_not_tried_may_be_tried_next() -> None:
    circuits.failed(CircuitKind.BOOT, "no boot", image="a", spec_key="b")
    later()
    assert circuits.admit("a", "b")[0] == 1
    assert circuits.admit("a", "b")[0] == 0
    circuits.give_back("a", "b")
    assert circuits.admit("a", "b")[0] == 1


def test_who_may_not_launch_makes_nobody_retire() -> None:
    by = checked_in(tasks.add.enqueue(1))
    assert claim(by)
    tasks.add.using(memory_mb=1024, priority=9).enqueue(2)
    circuits.failed(CircuitKind.TOKEN, "the token is refused")
    tight = dataclasses.replace(WISH, max_of_queue=1)
    [group] = runs.due_groups()
    assert "the token is refused" in queues.reserve(group, tight).reason
    assert Machine.objects.get().status == "busy"
    later()
    queues.reserve(group, tight)
    assert Machine.objects.get().status == "retiring"


def test_machines_that_do_not_boot_are_tried_less_and_less_until_one_checks_in() -> None:
    result = tasks.add.enqueue(1)
    [group] = runs.due_groups()
    machine = reserved(result)
    for number in range(1, 6):
        opened = circuits.failed(CircuitKind.BOOT, "ImportError: no module", image="shop:1", spec_key=group.spec_key)
        assert opened == (number == 5)
        assert circuits.admit("shop:1", group.spec_key) == (0, circuits.in_words(Circuit.objects.get()))
    assert "tried again every 10 min since" in circuits.in_words(Circuit.objects.get())
    assert circuits.admit("shop:2", group.spec_key) == (None, ""), "another image is another matter"
    assert circuits.admit("shop:1", "another-spec") == (None, "")
    later()
    assert circuits.admit("shop:1", group.spec_key)[0] == 1
    assert circuits.admit("shop:1", group.spec_key)[0] == 0, "one at a time"
    by = check_in(machine)
    assert circuits.mend() == 0, "a machine that crashes after its check-in has not booted"
    assert claim(by)
    assert circuits.mend() == 1
    assert not Circuit.objects.exists()


def test_a_machine_that_booted_before_proves_nothing() -> None:
    by = checked_in(tasks.add.enqueue(1))
    assert claim(by)
    machine = Machine.objects.get()
    circuits.failed(CircuitKind.BOOT, "no boot", image=machine.image, spec_key=machine.spec_key)
    assert circuits.mend() == 0


def test_a_new_dispatcher_forgets_what_its_settings_may_have_mended() -> None:
    circuits.failed(CircuitKind.TOKEN, "refused")
    circuits.failed(CircuitKind.BOOT, "no boot", image="a", spec_key="b")
    assert circuits.close(CircuitKind.TOKEN, CircuitKind.APP) == 1
    assert [each.kind for each in Circuit.objects.all()] == ["boot"]


class Unreadable:
    """A client that cannot read the dispatcher's own machine for a while."""

    def __init__(self, error: errors.MachinesError) -> None:
        self.error: errors.MachinesError | None = error

    def get(self, machine_id: str) -> Any:
        if self.error is not None:
            raise self.error
        return type("Own", (), {"config": {"env": {"SITE": "shop"}}, "metadata": {"fly_release_version": "7"}})()


@pytest.mark.django_db(transaction=True)
def test_nothing_is_launched_before_the_dispatcher_knows_its_own_machine(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MACHINEQUEUE = {"IMAGE": "shop:7"}
    monkeypatch.setenv("FLY_MACHINE_ID", "91857e1a2b3c4d")
    client = Unreadable(errors.Unreachable("504"))
    dispatcher = Dispatcher(Launcher(client), reconcile=lambda launcher: None)  # type: ignore[arg-type]
    result = tasks.add.enqueue(1)
    dispatcher.tick()
    assert "the dispatcher's own machine could not be read: 504" in result.why()
    assert not Machine.objects.exists()
    client.error = None
    dispatcher._announce_at = 0.0  # a second later
    launched: list[Machine] = []
    monkeypatch.setattr(dispatcher.launcher, "launch", lambda machine: launched.append(machine) or True)
    dispatcher.tick()
    assert len(launched) == 1
    assert dispatcher.launcher.base == {"SITE": "shop"}
    assert (Release.objects.get().image, Release.objects.get().version) == ("shop:7", 7)


@pytest.mark.django_db(transaction=True)
def test_a_machine_that_this_token_may_not_read_does_not_stop_the_dispatcher(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MACHINEQUEUE = {"IMAGE": "shop:7"}
    monkeypatch.setenv("FLY_MACHINE_ID", "91857e1a2b3c4d")
    launcher = Launcher(Unreadable(errors.NotFound("of another app")))  # type: ignore[arg-type]
    dispatcher = Dispatcher(launcher, reconcile=lambda launcher: None)
    dispatcher.tick()
    assert Release.objects.get().image == "shop:7"
