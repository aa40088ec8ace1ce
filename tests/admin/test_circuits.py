"""Circuits: what holds launches back is seen first, is explained, and is tried again when an operator wishes it."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from machinequeue.admin.alarms import MOST_SHOWN
from machinequeue.lifecycle import CircuitKind
from machinequeue.models import Circuit, Queue
from machinequeue.records import circuits, queues, runs
from tests.admin import rows
from tests.admin.test_lists import MACHINES, QUEUES, RUNS, page
from tests.admin.test_wishes import act, logged

CIRCUITS = "/admin/machinequeue/circuit/"


def alarms(client: Client, address: str = RUNS) -> str:
    return page(client, address).partition('class="mq-alarms"')[2].partition("</ul>")[0]


def held(circuit: Circuit) -> bool:
    """Whether its next launch is not due yet."""
    return Circuit.objects.filter(pk=circuit.pk, next_at__gt=runs.database_now()).exists()


def test_the_list_says_what_fails_what_waits_and_when_it_is_tried_again(operator: Client) -> None:
    run = rows.enqueue()
    rows.hold_back(run)
    rows.hold_back(rows.enqueue(), times=2)
    rows.refuse_token()
    text = page(operator, CIRCUITS)
    assert re.findall(r'mq-badge mq-(\w+)">([\w ]+)<', text) == [
        ("bad", "Held back"),
        ("bad", "Held back"),
        ("warn", "Trying again"),
    ]
    for word in ("Machines do not check in", "Token refused", "performance-2x 2,048 MB", "every launch"):
        assert word in text
    assert "shop@sha256:7f3c2a91d0e5<" in text
    assert re.findall(r'field-waiting">(\d+)<', text) == ["2", "1", "1"]
    assert re.search(r"in (9 min \d\d s|10 min)<", text)
    assert "&lt;in&gt; settings.py" in text, "all of the reason is a tooltip"


def test_a_circuit_s_page_shows_the_whole_reason(operator: Client) -> None:
    run = rows.enqueue()
    text = page(operator, f"{CIRCUITS}{rows.hold_back(run).pk}/change/")
    assert "SECRET_KEY is missing\nfor the shop, &lt;in&gt; settings.py</pre>" in text
    assert run.spec_key in text
    assert "performance-2x 2,048 MB" in text
    assert "data-mq-live" in text


def test_a_circuit_for_which_nothing_waits_shows_its_spec_key(operator: Client) -> None:
    run = rows.enqueue()
    circuit = rows.hold_back(run)
    runs.cancel(run.pk)
    assert run.spec_key in page(operator, CIRCUITS)
    assert run.spec_key in page(operator, f"{CIRCUITS}{circuit.pk}/change/")


def test_which_runs_wait_for_an_image_is_not_guessed(operator: Client) -> None:
    rows.enqueue()
    circuits.failed(CircuitKind.IMAGE, "manifest unknown", image="registry.fly.io/shop:v43")
    assert re.findall(r'field-waiting">(.)<', page(operator, CIRCUITS)) == ["–"]


@pytest.mark.parametrize("address", [RUNS, QUEUES, MACHINES])
def test_an_open_circuit_is_seen_where_an_operator_looks_first(operator: Client, address: str) -> None:
    run = rows.enqueue()
    rows.launch(run)
    closed = rows.hold_back(run, times=4)
    assert not alarms(operator, address)
    circuit = rows.hold_back(run, times=1)
    assert circuit.pk == closed.pk
    text = alarms(operator, address)
    assert f'href="{CIRCUITS}{circuit.pk}/change/"' in text
    assert "Machines do not check in" in text
    assert "SECRET_KEY is missing" in text
    assert re.search(r"Launches are held back for [\d.]+ m?s\. Next try: in (9 min \d\d s|10 min)\.", text)


def test_many_open_circuits_leave_room_for_the_list(operator: Client) -> None:
    for _ in range(MOST_SHOWN + 2):
        rows.hold_back(rows.enqueue())
    text = alarms(operator)
    assert text.count("<strong>") == MOST_SHOWN
    assert f'<a href="{CIRCUITS}">2 more</a>' in text


def test_who_may_not_see_circuits_is_warned_without_a_link(client: Client, db: None) -> None:
    user = User.objects.create_user("runs only", password="ro", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_taskrun"))
    client.force_login(user)
    rows.refuse_token()
    assert "Token refused" in alarms(client)
    assert "href" not in alarms(client)
    assert client.get(CIRCUITS).status_code == 403


def test_a_queue_whose_runs_are_held_back_does_not_look_open(operator: Client) -> None:
    rows.launch(rows.enqueue(queue="images"))
    run = rows.enqueue(queue="reports")
    rows.launch(run)

    def stand() -> list[str]:
        return re.findall(r'mq-badge mq-\w+">([\w ]+)<', page(operator, QUEUES))

    assert stand() == ["Open", "Open"]
    rows.hold_back(run)
    assert stand() == ["Open", "Held back"]
    assert "Held back" in page(operator, f"{QUEUES}{Queue.objects.get(name='reports').pk}/change/")
    rows.refuse_token()
    assert stand() == ["Held back", "Held back"]


def test_try_again_lets_one_launch_through(operator: Client) -> None:
    run = rows.enqueue()
    circuit = rows.hold_back(run)

    def reserved() -> int:
        wish = queues.Wish(app="shop", image=circuit.image, region="", max_of_queue=9, max_of_all=9, life_seconds=999)
        return len(queues.reserve(runs.due_groups()[0], wish).machines)

    assert reserved() == 0
    assert held(circuit)
    assert act(operator, CIRCUITS, "try_again", [circuit]) == ["1 launch is tried again as soon as a run waits for it."]
    assert not held(circuit)
    assert logged() == [(str(circuit.pk), "Tried again now.")]
    assert "due now" in page(operator, CIRCUITS)
    assert act(operator, CIRCUITS, "try_again", [circuit]) == ["Nothing changed: a launch was due already."]
    assert len(logged()) == 1
    assert reserved() == 1
    assert held(circuit), "one launch tries; the circuit is as open as before until it succeeds"


def test_the_button_of_a_circuit_asks_first(operator: Client) -> None:
    circuit = rows.refuse_token()
    address = f"{CIRCUITS}{circuit.pk}/try_again/"
    assert f'href="{address}"' in page(operator, f"{CIRCUITS}{circuit.pk}/change/")
    question = page(operator, address)
    assert "Try to launch again now?" in question
    assert "token validation error" in question
    assert held(circuit)
    answer = operator.post(address, follow=True)
    assert answer.redirect_chain == [(f"{CIRCUITS}{circuit.pk}/change/", 302)]
    assert not held(circuit)
    assert logged() == [(str(circuit.pk), "Tried again now.")]
    assert address not in page(operator, f"{CIRCUITS}{circuit.pk}/change/"), "its next launch is due"


def test_a_circuit_that_closed_meanwhile_is_told_so(operator: Client) -> None:
    circuit = rows.refuse_token()
    assert circuits.close(CircuitKind.TOKEN) == 1
    answer = operator.post(f"{CIRCUITS}{circuit.pk}/try_again/", follow=True)
    assert "doesn’t exist. Perhaps it was deleted?" in answer.content.decode()
    assert logged() == []


def test_who_may_look_may_not_try_again(reader: Client) -> None:
    circuit = rows.refuse_token()
    assert "try_again" not in page(reader, CIRCUITS)
    assert "mq-wish" not in page(reader, f"{CIRCUITS}{circuit.pk}/change/")
    assert reader.get(f"{CIRCUITS}{circuit.pk}/try_again/").status_code == 403
    assert reader.post(f"{CIRCUITS}{circuit.pk}/try_again/").status_code == 403
    act(reader, CIRCUITS, "try_again", [circuit])
    assert held(circuit)
    assert logged() == []
    User.objects.get().user_permissions.add(Permission.objects.get(codename="change_circuit"))
    assert act(reader, CIRCUITS, "try_again", [circuit]) == ["1 launch is tried again as soon as a run waits for it."]


def test_a_run_says_what_holds_its_launch_back(operator: Client) -> None:
    run = rows.enqueue()
    circuit = rows.hold_back(run)
    wish = queues.Wish(app="shop", image=circuit.image, region="", max_of_queue=9, max_of_all=9, life_seconds=999)
    queues.reserve(runs.due_groups()[0], wish)
    text: Any = page(operator, RUNS).partition('id="result_list"')[2]
    assert "machines do not boot: mq-default-1" in text


def test_times_of_a_circuit_are_the_database_s(operator: Client) -> None:
    circuit = rows.refuse_token()
    Circuit.objects.update(opened_at=runs.database_now() - timedelta(minutes=5, seconds=10))
    assert "Launches are held back for 5 min" in alarms(operator)
    assert "for 5 min" in page(operator, CIRCUITS)
    assert circuit.get_kind_display() == "Token refused"
