"""The client against answers that a real server gives rarely."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import pytest

from machinequeue.machines import errors
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.schema import CreateRequest, Lease
from machinequeue.machines.session import authorization, normal_base
from tests.machines.test_client_secrets import METHODS

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


PASSING = [httpx.ReadError("reset"), httpx.ConnectError("refused"), says(500), says(503), says(408), says(429)]


@pytest.mark.parametrize("passing", PASSING, ids=str)
def test_a_read_survives_what_passes(passing: Answer) -> None:
    client, script, pauses = client_of(passing, passing, says(200, row()))
    assert client.get("148e21").id == "148e21"
    assert len(script.asked) == 3
    assert len(pauses) == 2
    assert 0 < pauses[0] < 2


WRITES: list[Callable[[MachinesClient], object]] = [
    lambda client: client.start("1"),
    lambda client: client.stop("1"),
    lambda client: client.destroy("1"),
    lambda client: client.update("1", {"image": "i"}),
    lambda client: client.acquire_lease("1", 5),
    lambda client: client.exec("1", ["true"]),
    lambda client: client.merge_metadata("1", {"k": "v"}),
]


@pytest.mark.parametrize("passing", PASSING, ids=str)
def test_a_read_is_repeated_a_few_times_and_a_write_never(passing: Answer) -> None:
    client, script, _ = client_of(*[passing] * 3)
    with pytest.raises(errors.MachinesError) as caught:
        client.get("148e21")
    assert caught.value.retryable
    assert len(script.asked) == 3
    for write in WRITES:
        client, script, pauses = client_of(passing)
        with pytest.raises((errors.Ambiguous, errors.Unreachable, errors.RateLimited)):
            write(client)
        assert (len(script.asked), pauses) == (1, [])


@pytest.mark.parametrize(("seconds", "timeout"), [(40, 60), (4, 3)])
def test_a_read_is_not_repeated_beyond_its_time_nor_after_a_long_pause(seconds: int, timeout: float) -> None:
    client, script, pauses = client_of(says(429, **{"retry-after": str(seconds)}), timeout=timeout)
    with pytest.raises(errors.RateLimited) as caught:
        client.get("148e21")
    assert (caught.value.retry_after, len(script.asked), pauses) == (seconds, 1, [])


@pytest.mark.parametrize(
    ("header", "least", "most"), [("3", 3, 4), ("Wed, 21 Oct 2026 07:28:00 GMT", 1, 2), ("", 1, 2)]
)
def test_retry_after_is_kept_when_it_is_a_number(header: str, least: float, most: float) -> None:
    client, _, pauses = client_of(says(429, **{"retry-after": header}), says(200, row()))
    client.get("148e21")
    assert least < pauses[0] < most


def test_a_wait_is_not_begun_again() -> None:
    client, script, _ = client_of(says(503))
    with pytest.raises(errors.Unreachable):
        client.wait("1", "started")
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    "refusal", [says(429), says(422, {"error": "x", "status": "insufficient_capacity"}), says(401)]
)
def test_a_refusal_does_not_answer_for_the_create_whose_answer_was_lost(refusal: httpx.Response) -> None:
    """The first create may have happened, and be slow to show: to call it refused would leak a machine."""
    client, script, _ = client_of(says(504), says(200, []), refusal, says(200, []), refusal, says(200, []))
    with pytest.raises(errors.Ambiguous):
        client.create(REQUEST)
    assert asked(script) == [POST, LIST] * 3


def test_a_machine_that_has_the_name_but_cannot_be_read_may_be_ours() -> None:
    client, script, _ = client_of(*[says(409, TAKEN), says(404), says(200, [])] * 3)
    with pytest.raises(errors.Ambiguous, match="could not be read"):
        client.create(REQUEST)
    assert asked(script) == [POST, GET, LIST] * 3


def test_a_taken_name_without_an_id_is_looked_up() -> None:
    client, _, _ = client_of(says(422, {"error": "x", "status": "name_taken"}), says(200, [row()]))
    assert client.create(REQUEST).id == "148e21"
    client, _, _ = client_of(says(422, {"error": "x", "status": "name_taken"}), says(200, []))
    with pytest.raises(errors.NameTaken):
        client.create(REQUEST)


class Turns:
    """A pace that is asked, and says what the test wants."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.asked: list[tuple[str, str]] = []
        self.penalties: list[tuple[str, str, float]] = []

    def reserve(self, app: str, action: str, longest: float) -> float:
        self.asked.append((app, action))
        return self.seconds.pop(0)

    def refused(self, app: str, action: str, seconds: float) -> None:
        self.penalties.append((app, action, seconds))


def test_creates_and_lists_wait_for_their_turn_and_nothing_else_does() -> None:
    turns = Turns(1.5, 0.0)
    client, script, pauses = client_of(says(200, row()), says(200, []), *[says(200, row())] * 2, pace=turns)
    client.create(REQUEST)
    client.list()
    client.get("148e21")
    client.start("148e21")
    assert turns.asked == [("shop", "create"), ("shop", "list")]
    assert (pauses, len(script.asked)) == ([1.5], 4)


def test_whose_turn_is_too_far_away_is_told_when_and_nothing_is_sent() -> None:
    client, script, pauses = client_of(pace=Turns(7.5))
    with pytest.raises(
        errors.RateLimited, match=r"not sent: the app's turn for another create comes in 7.5 s"
    ) as caught:
        client.create(REQUEST)
    assert (caught.value.retry_after, caught.value.retryable, script.asked, pauses) == (7.5, True, [], [])


@pytest.mark.parametrize(("header", "seconds"), [("4", 4.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0)])
def test_a_429_in_spite_of_the_pace_is_passed_on(header: str, seconds: float) -> None:
    turns = Turns(0.0)
    client, _, _ = client_of(says(429, **{"retry-after": header}), pace=turns)
    with pytest.raises(errors.RateLimited):
        client.create(REQUEST)
    assert turns.penalties == [("shop", "create", seconds)]


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


EXPECTS_NOTHING = {"stop", "restart", "suspend", "signal", "destroy", "cordon", "uncordon", "release_lease"} | {
    "create_app",
    "set_metadata",
    "merge_metadata",
    "delete_metadata",
}
ANSWERED_WRITES = ("create", "start", "update", "exec", "acquire_lease", "refresh_lease", "placements")
OF_ANOTHER_KIND: dict[str, Callable[[], httpx.Response]] = {
    "half": lambda: httpx.Response(200, text='{"id": "148e'),
    "page": lambda: httpx.Response(200, text="<html>sesame</html>"),
    "nothing": lambda: httpx.Response(204),
    "null": lambda: says(200),
    "text": lambda: says(200, "sesame"),
    "rows of another kind": lambda: says(200, ["sesame"]),
}


@pytest.mark.parametrize("kind", OF_ANOTHER_KIND)
@pytest.mark.parametrize("name", METHODS)
def test_an_unusable_answer_is_no_success_where_one_is_expected(name: str, kind: str) -> None:
    """METHODS is every method there is, which test_client_secrets sees to."""
    client, _, _ = client_of(*[OF_ANOTHER_KIND[kind]() for _ in range(9)])
    if name in EXPECTS_NOTHING:
        METHODS[name](client)
        return
    if name == "events" and kind == "rows of another kind":
        return  # entries of a history may be anything
    expected = errors.Ambiguous if name in ANSWERED_WRITES else errors.Unreachable
    with pytest.raises(expected, match="not what was asked for") as caught:
        METHODS[name](client)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "body"),
    [
        (lambda client: client.get("1"), {"state": "started"}),
        (lambda client: client.list(), [row(), {"state": "started"}]),
        (lambda client: client.org_machines("personal"), {"machines": [{"name": "m"}]}),
        (lambda client: client.update("1", {}), {"ok": True}),
        (lambda client: client.acquire_lease("1", 5), {"status": "success", "data": {"expires_at": 5}}),
        (lambda client: client.refresh_lease("1", Lease("n"), 5), {}),
        (lambda client: client.wait("1", "stopped"), {"ok": True}),
    ],
)
def test_a_machine_without_an_id_a_lease_without_a_nonce_and_a_wait_without_a_state_are_none(
    call: Callable[[MachinesClient], object], body: object
) -> None:
    client, _, _ = client_of(says(200, body), read_tries=1)
    with pytest.raises((errors.Ambiguous, errors.Unreachable)):
        call(client)


def test_a_read_whose_answer_broke_off_is_sent_again() -> None:
    client, script, _ = client_of(OF_ANOTHER_KIND["half"](), says(200, row()))
    assert client.get("148e21").id == "148e21"
    assert len(script.asked) == 2


def test_a_create_whose_answer_broke_off_is_looked_up() -> None:
    client, script, _ = client_of(OF_ANOTHER_KIND["half"](), says(200, [row(state="started")]))
    assert client.create(REQUEST).id == "148e21"
    assert asked(script) == [POST, LIST]


def test_a_create_without_identity_whose_answer_is_lost_is_not_waited_for_in_vain() -> None:
    client, script, pauses = client_of(httpx.ReadTimeout("slow"))
    with pytest.raises(errors.Ambiguous):
        client.create(CreateRequest("mq-1", None, {"image": "i"}))
    assert (asked(script), pauses) == ([POST], [])


def test_who_holds_the_lease_shows_the_nonce_and_nobody_else() -> None:
    lease = Lease("secret-nonce")
    client, script, _ = client_of(*[says(200, row(nonce="secret-nonce")) for _ in range(9)])
    client.start("1", lease=lease)
    client.stop("1", lease=lease)
    client.restart("1", lease=lease)
    client.update("1", {"image": "i"}, current_version="01H", skip_launch=True, lease=lease)
    client.destroy("1", lease=lease)
    client.refresh_lease("1", lease, 30)
    client.release_lease("1", lease)
    client.get("1")
    nonces = [request.headers.get("fly-machine-lease-nonce") for request in script.asked]
    assert nonces == ["secret-nonce"] * 7 + [None]
    assert json.loads(script.asked[3].content) == {
        "config": {"image": "i"},
        "current_version": "01H",
        "skip_launch": True,
    }


def test_a_stop_always_has_a_body() -> None:
    """An array, which is how some libraries spell an empty one, is refused."""
    client, script, _ = client_of(says(200, {}), says(200, {}))
    client.stop("1", "SIGTERM", "30s")
    client.stop("1")
    assert [json.loads(request.content) for request in script.asked] == [{"signal": "SIGTERM", "timeout": "30s"}, {}]


@pytest.mark.parametrize(
    ("base", "logs"),
    [
        ("https://api.machines.dev", "https://api.fly.io"),
        ("http://_api.internal:4280", "https://api.fly.io"),
        ("http://127.0.0.1:4280", "http://127.0.0.1:4280"),
    ],
)
def test_logs_are_read_to_their_end_where_fly_keeps_them(base: str, logs: str) -> None:
    def page(*messages: str, token: str) -> httpx.Response:
        return says(
            200, {"data": [{"attributes": {"message": each}} for each in messages], "meta": {"next_token": token}}
        )

    client, script, _ = client_of(page("a", "b", token="2"), page("c", token="3"), page(token="3"), base_url=base)
    pages = [*client.logs("148e21", next_token="1")]
    assert [line.message for page in pages for line in page.lines] == ["a", "b", "c"]
    assert str(script.asked[0].url) == f"{logs}/api/v1/apps/shop/logs?instance=148e21&next_token=1"
    assert [request.url.params["next_token"] for request in script.asked] == ["1", "2", "3"]
    assert script.asked[0].headers["authorization"] == f"FlyV1 {TOKEN}"


def test_logs_whose_token_repeats_end() -> None:
    answer = {"data": [{"attributes": {"message": "a"}}], "meta": {"next_token": "7"}}
    client, script, _ = client_of(*[says(200, answer) for _ in range(3)])
    assert len([*client.logs("1")]) == 2
    assert len(script.asked) == 2


def test_the_machines_of_an_organisation_are_read_to_the_end() -> None:
    pages = [
        says(200, {"machines": [{"id": "1"}, {"id": "2"}], "next_cursor": "a", "error_regions": ["ord"]}),
        says(200, {"machines": [{"id": "2"}, {"id": "3"}], "next_cursor": "", "error_regions": ["ord", "gru"]}),
    ]
    client, _, _ = client_of(*pages)
    found = client.org_machines("personal")
    assert [machine.id for machine in found.machines] == ["1", "2", "3"]
    assert found.error_regions == ("gru", "ord")


def test_a_command_may_take_as_long_as_it_was_given() -> None:
    client, script, _ = client_of(says(200, {"stdout": "out", "stderr": "err", "exit_code": 3, "exit_signal": 0}))
    done = client.exec("1", ["python", "-V"], timeout=120, stdin="in")
    assert (done.stdout, done.stderr, done.exit_code, done.exit_signal) == ("out", "err", 3, 0)
    assert json.loads(script.asked[0].content) == {"command": ["python", "-V"], "timeout": 120, "stdin": "in"}
    assert script.asked[0].extensions["timeout"]["read"] > 120


def test_without_a_lease_there_is_none() -> None:
    client, _, _ = client_of(says(404), says(404), says(200, {"data": {"owner": "me", "expires_at": 5}}))
    assert client.lease("1") is None
    client.release_lease("1", Lease("n"))
    held = client.lease("1")
    assert held is not None
    assert (held.owner, held.nonce) == ("me", "")


def test_what_is_gone_is_destroyed() -> None:
    client, script, _ = client_of(says(404, {"error": "machine not found"}))
    client.destroy("1", force=True)
    assert script.asked[0].url.params["force"] == "true"


def test_names_in_paths_are_quoted() -> None:
    client, script, _ = client_of(says(200, row()), says(204))
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
        ("FlyV1 fm2_a,\nfm2_b\n", "FlyV1 fm2_a,fm2_b"),
    ],
)
def test_the_header_is_what_fly_expects_of_the_token(token: str, header: str) -> None:
    assert authorization(token) == header
    script = Script(says(200, {}))
    MachinesClient("shop", token=token, transport=script).app()
    assert script.asked[0].headers["authorization"] == header


@pytest.mark.parametrize("token", ["plain\nsecret-part", "sécret-part", "secret-part\x00"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_quoted(token: str) -> None:
    with pytest.raises(errors.Unauthorized) as caught:
        MachinesClient("shop", token=token)
    assert (
        "cret-part" not in f"{caught.value!r} {caught.value.args} {caught.value.__cause__} {caught.value.__context__}"
    )
    assert "pasted whole" in str(caught.value)


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


@pytest.mark.parametrize("url", ["ftp://api.machines.dev", "https://", "http://host:port", ""])
def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ValueError, match=r"is no address of the Machines API, as https://api.machines.dev is\."):
        MachinesClient("shop", token=TOKEN, base_url=url)


class Affine(BaseHTTPRequestHandler):
    """A server that asks to be reached again where the last write went, as Fly does with a cookie."""

    cookies: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.cookies.append(self.headers["cookie"])
        self.send_response(200)
        self.send_header("set-cookie", f"fly-affinity=instance-{len(self.cookies)}; Path=/")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        """Nothing."""


def test_cookies_are_kept_so_that_what_was_written_is_read() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Affine) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with MachinesClient("shop", token=TOKEN, base_url=f"http://127.0.0.1:{server.server_port}") as client:
                for _ in range(3):
                    client.app()
        finally:
            server.shutdown()
    assert Affine.cookies == [None, "fly-affinity=instance-1", "fly-affinity=instance-2"]


def test_an_error_says_where_to_look() -> None:
    client, _, _ = client_of(says(403, {"error": "over the allowed quota"}))
    with pytest.raises(errors.QuotaReached) as caught:
        client.create(REQUEST)
    assert str(caught.value) == "POST /v1/apps/shop/machines: 403 over the allowed quota (fly-request-id 01REQ-iad)"


@pytest.mark.parametrize(
    ("headers", "says_"),
    [
        ({"date": "Sat, 21 Nov 2026 10:15:00 GMT"}, datetime(2026, 11, 21, 10, 15, tzinfo=UTC)),
        ({"date": "soon"}, None),
        ({}, None),
    ],
)
def test_the_clock_of_the_api_is_its_date_header(headers: dict[str, str], says_: datetime | None) -> None:
    client, _, _ = client_of(says(200, {"name": "shop"}, **headers))
    assert client.clock() == says_
