"""The client against answers that a real server gives rarely."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from machinequeue.machines import errors
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.schema import CreateRequest
from machinequeue.machines.session import authorization, normal_base

TOKEN = "fm2_token-that-must-stay-hidden"
REQUEST = CreateRequest(
    "mq-1", None, {"image": "i", "env": {"KEY": "value-that-must-stay-hidden"}, "metadata": {"mq_machine": "row-1"}}
)
TAKEN = {
    "error": 'already_exists: unique machine name violation, machine ID 148e21 already exists with name "mq-1"',
}

Answer = httpx.Response | Exception


class Script(httpx.BaseTransport):
    """Gives prepared answers in turn and remembers what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def says(status: int, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers={"fly-request-id": "01REQ-iad", **headers})


def row(identity: str = "row-1", state: str = "created", **fields: Any) -> dict[str, Any]:
    config = {"image": "i", "metadata": {"mq_machine": identity}}
    return {"id": "148e21", "name": "mq-1", "state": state, "region": "iad", "config": config, **fields}


def client_of(*answers: Answer, **options: Any) -> tuple[MachinesClient, Script, list[float]]:
    script, pauses = Script(*answers), []  # type: tuple[Script, list[float]]
    return MachinesClient("shop", token=TOKEN, transport=script, pause=pauses.append, **options), script, pauses


def asked(script: Script) -> list[str]:
    return [f"{request.method} {request.url.path}" for request in script.asked]


POST, LIST, GET = "POST /v1/apps/shop/machines", "GET /v1/apps/shop/machines", "GET /v1/apps/shop/machines/148e21"


def test_create_returns_the_machine_with_the_request_id() -> None:
    client, script, _ = client_of(says(200, row()))
    machine = client.create(REQUEST)
    assert (machine.id, machine.state, machine.request_id) == ("148e21", "created", "01REQ-iad")
    assert json.loads(script.asked[0].content) == REQUEST.as_dict()


def test_a_taken_name_is_adopted_when_the_machine_is_ours() -> None:
    client, script, pauses = client_of(says(409, TAKEN), says(200, row(state="started")))
    assert client.create(REQUEST).state == "started"
    assert (asked(script), pauses) == ([POST, GET], [])


def test_a_taken_name_of_somebody_else_is_refused() -> None:
    client, _, _ = client_of(says(409, TAKEN), says(200, row("row-of-another")))
    with pytest.raises(errors.NameTaken) as caught:
        client.create(REQUEST)
    assert caught.value.machine_id == "148e21"


def test_without_identity_nothing_is_adopted() -> None:
    client, script, _ = client_of(says(409, TAKEN))
    with pytest.raises(errors.NameTaken):
        client.create(CreateRequest("mq-1", None, {"image": "i"}))
    assert asked(script) == [POST]


LOST = [httpx.ReadTimeout("slow"), httpx.ReadError("reset"), httpx.RemoteProtocolError("gone"), says(408), says(502)]


@pytest.mark.parametrize("lost", LOST, ids=str)
def test_a_lost_answer_means_looking_before_asking_again(lost: Answer) -> None:
    client, script, pauses = client_of(lost, says(200, [row(state="started")]))
    assert client.create(REQUEST).state == "started"
    assert asked(script) == [POST, LIST]
    assert script.asked[1].url.params["metadata.mq_machine"] == "row-1"
    assert len(pauses) == 1


def test_a_machine_that_ended_meanwhile_is_found_and_not_made_again() -> None:
    client, script, _ = client_of(httpx.ReadTimeout("slow"), says(200, [row(state="destroyed")]))
    assert client.create(REQUEST).state == "destroyed"
    assert script.asked[1].url.params["include_deleted"] == "true"


def test_what_is_not_there_is_asked_for_again_under_the_same_name() -> None:
    client, script, _ = client_of(httpx.ReadTimeout("slow"), says(200, []), says(200, row()))
    assert client.create(REQUEST).id == "148e21"
    assert asked(script) == [POST, LIST, POST]
    assert script.asked[0].content == script.asked[2].content


def test_an_empty_list_that_lied_ends_in_adoption() -> None:
    client, script, _ = client_of(says(504), says(200, []), says(409, TAKEN), says(200, row(state="started")))
    assert client.create(REQUEST).state == "started"
    assert asked(script) == [POST, LIST, POST, GET]


def test_a_list_that_ignores_the_filter_is_filtered_again() -> None:
    others = [row("row-2", id="2"), row(name="mq-2", id="3")]
    client, _, _ = client_of(says(504), says(200, others), says(200, row(id="4")))
    assert client.create(REQUEST).id == "4"


def test_after_a_few_tries_it_stays_ambiguous() -> None:
    client, script, pauses = client_of(*[says(503)] * 6)
    with pytest.raises(errors.Ambiguous) as caught:
        client.create(REQUEST)
    assert caught.value.retryable
    assert len(pauses) == 3
    assert asked(script) == [POST, LIST] * 3


def test_a_refusal_is_not_tried_again() -> None:
    client, script, _ = client_of(says(422, {"error": "x", "status": "insufficient_capacity"}))
    with pytest.raises(errors.NoCapacity):
        client.create(REQUEST)
    assert asked(script) == [POST]


def test_a_connection_that_was_refused_is_not_ambiguous() -> None:
    client, script, _ = client_of(httpx.ConnectError("refused"))
    with pytest.raises(errors.Unreachable):
        client.create(REQUEST)
    assert asked(script) == [POST]


def test_a_read_survives_one_reset_and_a_write_is_never_repeated() -> None:
    client, script, _ = client_of(httpx.ReadError("reset"), says(200, row()))
    assert client.get("148e21").id == "148e21"
    client, script, _ = client_of(httpx.ReadError("reset"))
    with pytest.raises(errors.Ambiguous):
        client.stop("148e21")
    assert len(script.asked) == 1


def test_a_list_is_read_to_its_end() -> None:
    pages = [
        httpx.Response(200, json=[row(id="1"), row(id="2")], headers={"fly-next-cursor": "a"}),
        httpx.Response(200, json=[], headers={"fly-next-cursor": "b"}),
        httpx.Response(200, json=[row(id="2"), row(id="3")]),
    ]
    client, script, _ = client_of(*pages)
    found = client.list({"mq_machine": "row-1", "k": "v"}, states=["started", "stopped"], region="iad")
    assert [machine.id for machine in found] == ["1", "2", "3"]
    assert [request.url.params.get("cursor") for request in script.asked] == [None, "a", "b"]
    sent = script.asked[2].url.params
    assert (sent["state"], sent["region"], sent["metadata.k"]) == ("started,stopped", "iad", "v")


def test_a_cursor_that_repeats_ends_the_list() -> None:
    page = [httpx.Response(200, json=[row(id="1")], headers={"fly-next-cursor": "a"}) for _ in range(3)]
    client, script, _ = client_of(*page)
    assert len(client.list()) == 1
    assert len(script.asked) == 2


def test_a_wait_outlasts_what_it_asks_for() -> None:
    client, script, _ = client_of(
        says(200, {"ok": True, "state": "stopped"}), says(408, {"error": "deadline_exceeded"})
    )
    assert client.wait("1", "stopped,destroyed", timeout=300, instance_id="01H") == "stopped"
    assert script.asked[0].url.params["timeout"] == "60"
    assert script.asked[0].url.params["version"] == "01H"
    assert script.asked[0].extensions["timeout"]["read"] > 60
    with pytest.raises(errors.WaitTimeout):
        client.wait("1", "stopped", timeout=0.1)
    assert script.asked[1].url.params["timeout"] == "1"


def test_bodies_that_are_no_json_do_not_crash() -> None:
    client, _, _ = client_of(*[httpx.Response(200, text="<html>") for _ in range(5)])
    assert client.get("1").id == ""
    assert (client.list(), client.events("1"), client.metadata("1"), client.secrets()) == ([], (), {}, [])


def test_what_is_gone_is_destroyed() -> None:
    client, script, _ = client_of(says(404, {"error": "machine not found"}))
    client.destroy("1", force=True)
    assert script.asked[0].url.params["force"] == "true"


def test_names_in_paths_are_quoted() -> None:
    client, script, _ = client_of(says(200, {}), says(204))
    client.get("../../apps")
    client.set_metadata("1", "a/b", "v")
    assert script.asked[0].url.raw_path == b"/v1/apps/shop/machines/..%2F..%2Fapps"
    assert script.asked[1].url.raw_path.endswith(b"/metadata/a%2Fb")


@pytest.mark.parametrize(
    ("token", "header"),
    [
        ("fm2_a,fm2_b", "FlyV1 fm2_a,fm2_b"),
        ("FlyV1 fm2_a,fm1r_b", "FlyV1 fm2_a,fm1r_b"),
        ("Bearer fm1a_a", "FlyV1 fm1a_a"),
        ("FlyV1 fm2_a,fo1_user", "FlyV1 fm2_a"),
        ("plain", "Bearer plain"),
        ("bearer plain ", "Bearer plain"),
    ],
)
def test_the_header_is_what_fly_expects_of_the_token(token: str, header: str) -> None:
    assert authorization(token) == header
    script = Script(says(200, {}))
    MachinesClient("shop", token=token, transport=script).app()
    assert script.asked[0].headers["authorization"] == header


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("https://api.machines.dev/v1/", "https://api.machines.dev"),
        ("api.machines.dev", "https://api.machines.dev"),
        ("_api.internal:4280", "http://_api.internal:4280"),
        ("http://127.0.0.1:4280/v1", "http://127.0.0.1:4280"),
    ],
)
def test_the_base_address_in_its_forms(given: str, base: str) -> None:
    assert normal_base(given) == base


def test_cookies_are_kept() -> None:
    answer = httpx.Response(200, json={}, headers={"set-cookie": "fly-affinity=a; Path=/"})
    client, script, _ = client_of(answer, says(200, {}))
    client.app()
    client.app()
    assert script.asked[1].headers["cookie"] == "fly-affinity=a"


ECHO = f"your {TOKEN} and value-that-must-stay-hidden"
CALLS: list[Callable[[MachinesClient], object]] = [
    lambda client: client.create(REQUEST),
    lambda client: client.get("1"),
    lambda client: client.list(),
    lambda client: client.start("1"),
    lambda client: client.stop("1"),
    lambda client: client.wait("1", "started"),
    lambda client: client.destroy("1"),
    lambda client: client.set_metadata("1", "k", "v"),
    lambda client: client.app(),
]


def texts_of(call: Callable[[MachinesClient], object], status: int | None) -> list[str]:
    """All that can be read off the error of a call."""
    quoting = ECHO if call is CALLS[0] else TOKEN
    answers: list[Answer] = [
        httpx.ReadTimeout("slow") if status is None else says(status, {"error": quoting}) for _ in range(6)
    ]
    client, _, _ = client_of(*answers)
    try:
        call(client)
    except errors.MachinesError as error:
        trace = "".join(traceback.format_exception(error))
        return [f"{error!r} {error} {error.args} {error.__dict__} {client!r} {client._session!r} {trace}"]
    return []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 412, 422, 429, 500, None])
def test_no_secret_is_in_any_text(status: int | None) -> None:
    """A server that quotes token and env back at us, and errors of the connection."""
    texts = [text for call in CALLS for text in texts_of(call, status)]
    assert len(texts) >= len(CALLS) - 1  # to destroy what is not there is no error
    for text in texts:
        assert TOKEN not in text
        assert "value-that-must-stay-hidden" not in text


def test_an_error_says_where_to_look() -> None:
    client, _, _ = client_of(says(403, {"error": "over the allowed quota"}))
    with pytest.raises(errors.QuotaReached) as caught:
        client.create(REQUEST)
    assert str(caught.value) == "POST /v1/apps/shop/machines: 403 over the allowed quota (fly-request-id 01REQ-iad)"
