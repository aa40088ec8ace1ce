"""What the keeper of serverless machines decides from the rows alone, before it has looked at Fly."""

import math
from typing import Any

import pytest

from machinequeue.dispatch.launch import Launcher
from machinequeue.dispatch.serverless import Keeper
from machinequeue.machines.client import MachinesClient
from machinequeue.models import ServerlessMachine

pytestmark = pytest.mark.django_db

SIZE = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 512, "regions": []}


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.MACHINEQUEUE = {"APP": "shop", "IMAGE": "shop:2"}


def a_round() -> None:
    """One round of a keeper that does not look at Fly yet."""
    with MachinesClient("shop", token="nobody's", base_url="http://127.0.0.1:9") as client:
        Keeper(Launcher(client), _look_at=math.inf)()


def ready(image: str) -> ServerlessMachine:
    name = f"mq-{image}"
    return ServerlessMachine.objects.create(
        app="shop", size_key="k", size=SIZE, name=name, fly_id=name, status="ready", image=image
    )


def statuses() -> dict[str, str]:
    return dict(ServerlessMachine.objects.values_list("image", "status"))


def test_the_old_machine_stays_until_the_new_one_answers() -> None:
    ready("shop:1")
    a_round()
    assert statuses() == {"shop:1": "ready", "shop:2": "wished"}
    for status in ("wished", "creating"):
        # A pause, so that this round makes no create call.
        ServerlessMachine.objects.filter(image="shop:2").update(status=status, next_at="2999-01-01T00:00Z")
        a_round()
        assert statuses() == {"shop:1": "ready", "shop:2": status}
    ServerlessMachine.objects.filter(image="shop:2").update(status="ready", fly_id="mq-2")
    a_round()
    assert statuses() == {"shop:1": "retiring", "shop:2": "ready"}


def test_a_machine_of_the_current_image_stays() -> None:
    ready("shop:2")
    a_round()
    assert statuses() == {"shop:2": "ready"}


def test_an_heir_of_another_size_is_none() -> None:
    ready("shop:1")
    ServerlessMachine.objects.filter(pk=ready("shop:2").pk).update(size_key="another")
    a_round()
    assert ServerlessMachine.objects.get(image="shop:1").status == "ready"
