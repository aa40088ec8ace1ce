"""Nothing secret reaches a text: not by an error, what it was raised from, its traceback, a repr, a URL or a log."""

from __future__ import annotations

import base64
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator

import httpx
import pytest

from machinequeue.machines import errors
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.schema import CreateRequest, Guest, Lease, Machine
from tests.machines.conftest import python

TOKEN = "FlyV1 fm2_token-sesame-one,fm2_token-sesame-two"
CONTENT = "file-sesame-content"
CONFIG = {
    "image": "i",
    "env": {"KEY": "env-sesame-value"},
    "files": [{"guest_path": "/f", "raw_value": base64.b64encode(CONTENT.encode()).decode()}],
    "processes": [{"cmd": ["x"], "env": {"KEY": "process-sesame-value"}}],
    "containers": [{"name": "c", "env": {"KEY": "container-sesame-value"}}],
    "metadata": {"mq_machine": "m-1"},
}
REQUEST = CreateRequest("m-1", None, CONFIG)
LEASE = Lease("nonce-sesame-value")
STDIN = "stdin-sesame-value"
QUOTED = (
    "FlyV1 fm2_token-sesame-one,fm2_token-sesame-two and fm2_token-sesame-two alone",
    "env-sesame-value",
    "process-sesame-value",
    "container-sesame-value",
    CONTENT,
    CONFIG["files"][0]["raw_value"],  # type: ignore[index]
    LEASE.nonce,
    STDIN,
)
SECRETS = ("sesame", str(CONFIG["files"][0]["raw_value"]))  # type: ignore[index]

METHODS: dict[str, Callable[[MachinesClient], object]] = {
    "create": lambda client: client.create(REQUEST),
    "get": lambda client: client.get("1"),
    "list": lambda client: client.list({"k": "v"}),
    "events": lambda client: client.events("1"),
    "wait": lambda client: client.wait("1", "started"),
    "logs": lambda client: [*client.logs("1")],
    "start": lambda client: client.start("1", lease=LEASE),
    "stop": lambda client: client.stop("1", lease=LEASE),
    "restart": lambda client: client.restart("1", lease=LEASE),
    "suspend": lambda client: client.suspend("1", lease=LEASE),
    "signal": lambda client: client.signal("1", "SIGTERM"),
    "update": lambda client: client.update("1", CONFIG, lease=LEASE),
    "destroy": lambda client: client.destroy("1", lease=LEASE),
    "cordon": lambda client: client.cordon("1"),
    "uncordon": lambda client: client.uncordon("1"),
    "exec": lambda client: client.exec("1", ["true"], stdin=STDIN),
    "acquire_lease": lambda client: client.acquire_lease("1", 5),
    "refresh_lease": lambda client: client.refresh_lease("1", LEASE, 5),
    "release_lease": lambda client: client.release_lease("1", LEASE),
    "lease": lambda client: client.lease("1"),
    "metadata": lambda client: client.metadata("1"),
    "set_metadata": lambda client: client.set_metadata("1", "k", "v"),
    "merge_metadata": lambda client: client.merge_metadata("1", {"k": "v"}),
    "delete_metadata": lambda client: client.delete_metadata("1", "k"),
    "app": lambda client: client.app(),
    "clock": lambda client: client.clock(),
    "create_app": lambda client: client.create_app("other", "personal", network="other"),
    "secrets": lambda client: client.secrets(),
    "current_token": lambda client: client.current_token(),
    "regions": lambda client: client.regions(),
    "placements": lambda client: client.placements("personal", Guest()),
    "org_machines": lambda client: client.org_machines("personal"),
}

# Of these the caller passes what is secret as it is, so a traceback that shows variables shows it in the caller too.
GIVEN_BARE = ("update", "exec")


WITH_LEASE = ("start", "stop", "restart", "suspend", "destroy", "refresh_lease", "release_lease")


def quoted_for(name: str) -> str:
    """What an answer to this call can quote: what the call sent."""
    sent = {"create": QUOTED[:6], "update": QUOTED[:7], "exec": (QUOTED[0], STDIN)}
    usual = (QUOTED[0], LEASE.nonce) if name in WITH_LEASE else QUOTED[:1]
    return " | ".join(str(each) for each in sent.get(name, usual))


FAILURES: list[type[httpx.TransportError]] = [
    httpx.ConnectError,
    httpx.ReadTimeout,
    httpx.ReadError,
    httpx.RemoteProtocolError,
    httpx.WriteError,
    httpx.DecodingError,  # type: ignore[list-item]
]
STATUSES = (302, 400, 401, 403, 404, 408, 409, 412, 418, 422, 429, 500, 501, 503, 504)
SHAPES: tuple[Callable[[str], httpx.Response], ...] = (
    lambda text: httpx.Response(200, json={"error": text}),
    lambda text: httpx.Response(200, json={"message": text}),
    lambda text: httpx.Response(200, json={"detail": [text]}),
    lambda text: httpx.Response(200, text=f"<html><body>{text}</body></html>"),
    lambda text: httpx.Response(200, text="x" * 475 + text),  # a secret that lies where the text is cut
    lambda text: httpx.Response(200, text=text),
)


def client_that(answer: Callable[[httpx.Request], httpx.Response]) -> MachinesClient:
    return MachinesClient("shop", token=TOKEN, transport=httpx.MockTransport(answer), pause=lambda seconds: None)


def failing(kind: type[Exception], text: str) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        raise kind(text, request=request)  # type: ignore[call-arg]

    return answer


def refusing(status: int, shape: Callable[[str], httpx.Response], text: str) -> Callable[..., httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        del request
        response = shape(text)
        response.status_code = status
        return response

    return answer


def everything_about(error: BaseException, *, variables: bool) -> Iterator[str]:
    """All that can be read off an error by who catches, logs or reports it."""
    seen: BaseException | None = error
    while seen is not None:
        # What it was raised from must be ours, too: an exception of httpx holds the request with headers and body.
        assert isinstance(seen, errors.MachinesError), seen
        yield f"{seen!r} {seen} {seen.args!r} {vars(seen)!r}"
        seen = seen.__cause__ or seen.__context__
    yield "".join(traceback.TracebackException.from_exception(error, capture_locals=variables).format())
    yield "".join(traceback.format_exception(error))


def ways(name: str) -> Iterator[Callable[[httpx.Request], httpx.Response]]:
    text = quoted_for(name)
    yield from (failing(kind, text) for kind in FAILURES)
    yield from (refusing(status, SHAPES[0], text) for status in STATUSES)
    yield from (refusing(400, shape, text) for shape in SHAPES)


def test_every_method_is_looked_at() -> None:
    public = {name for name, _ in inspect.getmembers(MachinesClient, inspect.isfunction) if not name.startswith("_")}
    assert public - {"close"} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_no_failure_of_a_call_shows_a_secret(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    raised = 0
    for way in ways(name):
        client = client_that(way)
        try:
            METHODS[name](client)
        except errors.MachinesError as error:
            raised += 1
            for text in everything_about(error, variables=name not in GIVEN_BARE):
                assert not [secret for secret in SECRETS if secret in text], text
        assert "sesame" not in f"{client!r} {client._session!r} {caplog.text}"
    assert raised >= len(FAILURES) + len(STATUSES)


def test_values_that_hold_secrets_show_none() -> None:
    machine = Machine.parse({"id": "1", "config": CONFIG, "nonce": LEASE.nonce})
    texts = [repr(REQUEST), repr(machine), repr(machine.lease), repr(machine.as_dict()), repr(LEASE)]
    client = client_that(lambda request: httpx.Response(200, json={"stdout": "sesame", "stderr": "sesame"}))
    texts.append(repr(client.exec("1", ["env"])))
    lines = {"data": [{"attributes": {"message": "sesame"}}]}
    client = client_that(lambda request: httpx.Response(200, json=lines))
    texts.append(repr([*client.logs("1")]))
    assert not [text for text in texts if "sesame" in text]


def test_logs_of_a_real_exchange_show_neither_token_nor_env_nor_nonce(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "httpx")  # which a command may have made quieter in this process
    config = python("pass", env={"KEY": "env-sesame-value"}, metadata={"mq_machine": "log-lines"})
    with emulator.client() as client:
        made = client.create(CreateRequest("log-lines", None, config, skip_launch=True, lease_ttl=1))
        client.list({"mq_machine": "log-lines"})
        client.wait(made.id, "stopped")
        with pytest.raises(errors.ImageNotFound):
            client.create(CreateRequest("log-lines-2", None, {**config, "image": "unknown:1"}))
        client.destroy(made.id, force=True, lease=made.lease)
    assert "HTTP Request: POST" in caplog.text, "httpx logs, or this test sees nothing"
    assert emulator.token not in caplog.text
    assert "sesame" not in caplog.text
    assert not made.nonce or made.nonce not in caplog.text
