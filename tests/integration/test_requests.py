"""What a dispatcher asks Fly for when it launches: secrets that are withheld, and nothing of ours for other code."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machinequeue.containers.driver import Drive, _starts
from machinequeue.dispatch.launch import CONTAINER, Launcher, site
from machinequeue.dispatch.serverless import MARK, Keeper
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.errors import MachinesError
from machinequeue.machines.schema import CreateRequest
from machinequeue.models import ApiAnswer, Machine, ServerlessMachine
from machinequeue.reconciler import Reconciler

TOKEN, SANDBOX_TOKEN = "FLY_API_TOKEN", "MACHINEQUEUE_CONTAINER_TOKEN"
SPEC = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256, "regions": []}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    secrets = {TOKEN: "the token", SANDBOX_TOKEN: "another", "SHOP_SECRET": "withheld", "DATABASE_URL": "given"}
    images = {"shop:1": Path(__file__).resolve().parents[2]}
    with Emulator(app="shop", images=images, secrets=secrets, state_dir=tmp_path_factory.mktemp("emulator")) as running:
        yield running


@pytest.fixture
def client(emulator: Emulator) -> Iterator[MachinesClient]:
    with emulator.client(read_tries=1) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.MACHINEQUEUE = {**getattr(settings, "MACHINEQUEUE", {}), "WITHHOLD_SECRETS": ["SHOP_SECRET"]}


def machine(**more: Any) -> Machine:
    return Machine(name="mq-1", backend="default", queue="default", image="shop:1", spec={**SPEC, **more})


def secrets_of(config: dict[str, Any]) -> set[str]:
    """The secrets of the app that its processes are given."""
    [process] = config["processes"]
    assert process["ignore_app_secrets"]
    return {each["env_var"] for each in process["secrets"]}


def test_neither_the_token_nor_what_is_withheld_goes_into_a_task_machine(client: MachinesClient) -> None:
    base = {TOKEN: "the token", SANDBOX_TOKEN: "another", "SHOP_SECRET": "withheld", "OF_FLY_TOML": "kept"}
    config = Launcher(client, base)._request(machine()).config
    assert secrets_of(config) == {"DATABASE_URL"}
    assert config["env"]["OF_FLY_TOML"] == "kept"
    assert not {TOKEN, SANDBOX_TOKEN, "SHOP_SECRET"} & config["env"].keys()
    assert not {"the token", "another", "withheld"} & set(config["env"].values())


def test_a_serverless_machine_gets_all_but_the_token_as_the_site_does(client: MachinesClient) -> None:
    base = {TOKEN: "the token", SANDBOX_TOKEN: "another", "SHOP_SECRET": "of fly.toml", "OF_FLY_TOML": "kept"}
    row = ServerlessMachine(app="shop", name="mq-web", image="shop:1", size_key="k", size=SPEC)
    config = Keeper(Launcher(client, base))._request(row).config
    assert secrets_of(config) == {"SHOP_SECRET", "DATABASE_URL"}
    assert config["env"]["SHOP_SECRET"] == "of fly.toml"
    assert not {TOKEN, SANDBOX_TOKEN} & config["env"].keys()


def test_nothing_is_launched_before_the_names_of_the_secrets_are_known(
    emulator: Emulator, client: MachinesClient
) -> None:
    launcher = Launcher(client)
    with emulator.faults.add("server_error", "secret-get", status=500), pytest.raises(MachinesError):
        launcher._request(machine())
    assert secrets_of(launcher._request(machine()).config) == {"DATABASE_URL"}


def test_names_that_were_read_once_are_believed_while_they_cannot_be_read(
    emulator: Emulator, client: MachinesClient
) -> None:
    launcher = Launcher(client)
    launcher._request(machine())
    assert launcher._secrets is not None
    launcher._secrets = (-math.inf, launcher._secrets[1])
    with emulator.faults.add("server_error", "secret-get", status=500) as fault:
        assert secrets_of(launcher._request(machine()).config) == {"DATABASE_URL"}
        assert fault.fired


def test_a_machine_for_code_that_is_not_ours_is_asked_for_with_nothing_of_ours(client: MachinesClient) -> None:
    launcher = Launcher(client, {"OF_FLY_TOML": "kept"})
    request = launcher._container_request(machine(**{CONTAINER: {"check": False}}))
    assert request.skip_secrets
    assert not request.config.keys() & {"env", "services", "processes", "files", "mounts"}
    assert request.config["init"]["exec"][0] == "sleep"


@pytest.mark.django_db
def test_the_app_for_code_that_is_not_ours_is_looked_at_once_it_is_named(
    emulator: Emulator, client: MachinesClient, settings: Any
) -> None:
    """Also when no row names it any more: machines may be left in it all the same."""
    known = {"APP": "shop", "API_TOKEN": emulator.token, "API_URL": emulator.url, "LEAKED_SECONDS": 0}
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, **known}
    launcher = Launcher(client)
    assert launcher.container_client() is None
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "CONTAINER_APP": "cell"}
    try:
        assert list(Reconciler().survey(launcher)) == []
        assert not ApiAnswer.objects.filter(app="cell").exists(), "that it is not there yet is no failure"
        client.create_app("cell", "personal", network="cell")
        beside = launcher.container_client()
        assert beside is not None
        metadata = {"mq_machine": "mq-left", "mq_site": site()}
        config = {
            "image": "shop:1",
            "init": {"cmd": ["python", "-c", "import signal; signal.pause()"]},
            "metadata": metadata,
        }
        left = beside.create(CreateRequest("mq-left", None, config))
        [repair] = Reconciler().survey(launcher)
        assert (repair.verb, repair.subject) == ("destroy", "mq-left")
        repair.do()
        assert beside.get(left.id).state in {"destroying", "destroyed"}
    finally:
        launcher.close()


@pytest.mark.django_db
def test_a_machine_that_cannot_be_destroyed_keeps_nobody_from_looking_after_the_others(
    emulator: Emulator, client: MachinesClient, settings: Any
) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "APP": "shop", "LEAKED_SECONDS": 0}
    sleep = {"image": "shop:1", "init": {"cmd": ["python", "-c", "import signal; signal.pause()"]}}
    names = ("mq-serverless-a", "mq-serverless-b")
    left = {
        name: client.create(CreateRequest(name, None, {**sleep, "metadata": {MARK: site(), "mq_machine": name}}))
        for name in names
    }
    keeper = Keeper(Launcher(client))
    with emulator.faults.add("server_error", "destroy", status=500, times=1) as fault:
        assert keeper._look(often=True), "the list is known"
        assert fault.fired
    assert sorted(client.get(each.id).state == "started" for each in left.values()) == [False, True]
    keeper._look_at = 0.0
    assert keeper._look(often=True)
    assert not any(client.get(each.id).state == "started" for each in left.values())


def test_a_machine_that_was_started_again_is_another(client: MachinesClient) -> None:
    """What a command said in it, before or after, is worth nothing."""
    config = {
        "image": "shop:1",
        "init": {"cmd": ["python", "-c", "import signal; signal.pause()"]},
        "restart": {"policy": "no"},
    }
    made = client.create(CreateRequest("mq-drive", None, config))
    client.wait(made.id, "started", timeout=60)
    drive = Drive(client, Machine(name="mq-drive", fly_id=made.id), "boot", lambda: False)
    drive.starts = _starts(client.get(made.id))
    assert drive.is_same()
    client.restart(made.id, "SIGKILL", "1s")
    client.wait(made.id, "started", timeout=60)
    assert not drive.is_same()
    client.destroy(made.id, force=True)
    assert not drive.is_same()
