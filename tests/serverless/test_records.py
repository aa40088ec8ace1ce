"""Rows of serverless machines: each transition once, whoever else tries it."""

from datetime import timedelta
from typing import Any

import pytest

from machinequeue.models import ServerlessMachine
from machinequeue.records import serverless

pytestmark = pytest.mark.django_db

SIZE = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 512, "regions": []}


def wished() -> Any:
    assert serverless.wish("shop", "k", SIZE)
    return serverless.present("shop")[0]


def creating() -> Any:
    row = wished()
    assert serverless.aim(row, "shop:1", "mq-1")
    [row] = serverless.present("shop")
    assert serverless.requesting(row)
    return serverless.present("shop")[0]


def test_from_a_wish_to_the_end() -> None:
    row = creating()
    assert serverless.created(row, fly_id="f1", region="iad", state="created")
    assert serverless.known("shop")["k"].fly_id == ""
    assert serverless.checked_in("mq-1", fly_id="f1", region="iad")
    assert serverless.known("shop")["k"].fly_id == "f1"
    assert serverless.retire(row, "its image is not the current one")
    assert serverless.known("shop") == {}
    assert serverless.gone(row)
    assert serverless.present("shop") == []
    assert not serverless.gone(row)
    assert serverless.prune(0) == 1


def test_one_wish_of_a_size() -> None:
    row = wished()
    assert not serverless.wish("shop", "k", SIZE)
    assert serverless.wish("other", "k", SIZE)
    assert serverless.wish("shop", "l", SIZE)
    assert serverless.aim(row, "shop:1", "mq-1")
    assert not serverless.wish("shop", "k", SIZE)


def test_a_release_starts_anew_and_another_try_does_not() -> None:
    serverless.aim(wished(), "shop:1", "mq-1")
    later = ServerlessMachine.objects.get().asked_at + timedelta(hours=1)
    ServerlessMachine.objects.update(failures=9, error="no such module", next_at=later)
    assert serverless.aim(ServerlessMachine.objects.get(), "shop:1", "mq-2")
    row = ServerlessMachine.objects.get()
    assert (row.name, row.failures, row.error, row.next_at) == ("mq-2", 9, "no such module", later)
    assert serverless.aim(row, "shop:2", "mq-3")
    row.refresh_from_db()
    assert (row.name, row.failures, row.error) == ("mq-3", 0, "")
    assert row.next_at < later


def test_a_wish_that_came_late_is_dropped() -> None:
    creating()
    ServerlessMachine(app="shop", size_key="k", size=SIZE).save()  # written before the other was taken up was seen
    late = serverless.present("shop")[-1]
    assert not serverless.aim(late, "shop:1", "mq-2")
    assert [row.name for row in serverless.present("shop")] == ["mq-1"]


def test_only_one_dispatcher_makes_the_call() -> None:
    row = creating()
    assert not serverless.requesting(row)
    assert serverless.failed(row, "no capacity", pause=60, name="mq-2")
    assert not serverless.failed(row, "no capacity", pause=60, name="mq-3")
    [again] = serverless.present("shop")
    assert (again.status, again.name, again.failures, again.error) == ("wished", "mq-2", 1, "no capacity")
    assert again.next_at > again.now + timedelta(seconds=30)
    assert not serverless.requesting(again), "its pause is not over"


def test_a_machine_that_was_given_up_does_not_check_in() -> None:
    row = creating()
    serverless.created(row, fly_id="f1", region="iad", state="created")
    assert not serverless.checked_in("mq-1", fly_id="another", region="iad")
    assert not serverless.checked_in("mq-0", fly_id="f1", region="iad")
    serverless.failed(row, "slow", pause=0, name="mq-2")
    assert not serverless.checked_in("mq-1", fly_id="f1", region="iad")
    assert serverless.known("shop")["k"].fly_id == ""


def test_the_machine_that_was_ready_last_answers_and_the_one_before_stays_until_then() -> None:
    row = creating()
    serverless.checked_in("mq-1", fly_id="f1", region="iad")
    [row] = serverless.present("shop")
    assert serverless.succeed(row, "shop:2", "mq-2")
    assert not serverless.succeed(row, "shop:2", "mq-3")
    assert serverless.known("shop")["k"].fly_id == "f1"
    heir = serverless.present("shop")[-1]
    assert serverless.requesting(heir)
    assert serverless.known("shop")["k"].fly_id == "f1"
    ServerlessMachine.objects.filter(name="mq-1").update(ready_at=row.now - timedelta(seconds=9))
    assert serverless.checked_in("mq-2", fly_id="f2", region="iad")
    assert serverless.known("shop")["k"].fly_id == "f2"


def test_a_wish_is_dropped_and_a_machine_is_not() -> None:
    row = wished()
    assert serverless.drop(row)
    row = creating()
    assert not serverless.drop(row)
    assert serverless.asked("shop", ["k", "unknown"]) == 1
    assert serverless.names() == {"mq-1"}
