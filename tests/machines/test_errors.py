"""Every text of the facts about Fly's errors means what it should."""

from __future__ import annotations

import json
import pickle

import pytest

from machinequeue.machines import errors
from machinequeue.machines.errors import Answer, MachinesError, classify

MACHINES = "/v1/apps/shop/machines"
HOST, REGION = "host", "region"

# status, text or body, error, capacity scope
TEXTS: list[tuple[int, str | dict[str, str], type[MachinesError], str]] = [
    (422, {"error": "could not find a candidate host", "status": "insufficient_capacity"}, errors.NoCapacity, REGION),
    (422, {"error": "other words", "status": "insufficient_capacity"}, errors.NoCapacity, REGION),
    (412, {"error": "the host is full", "status": "volume_placement_capacity"}, errors.NoCapacity, HOST),
    (409, "aborted: insufficient CPUs available to fulfill request", errors.NoCapacity, HOST),
    (409, "aborted: insufficient memory available to fulfill request", errors.NoCapacity, HOST),
    (409, "aborted: insufficient IPs available to fulfill request", errors.NoCapacity, HOST),
    (409, "insufficient resources available to fulfill request", errors.NoCapacity, HOST),
    (400, "insufficient resources available to fulfill request", errors.NoCapacity, HOST),
    (412, "insufficient resources available to fulfill request", errors.NoCapacity, HOST),
    (403, "insufficient memory available to fulfill request", errors.NoCapacity, HOST),
    (409, "could not reserve resource for machine: insufficient memory", errors.NoCapacity, HOST),
    (409, "unavailable: sjc: no capacity", errors.NoCapacity, REGION),
    (400, "failed to create volume: no capacity", errors.NoCapacity, REGION),
    (422, "could not find capacity for volume workloads", errors.NoCapacity, REGION),
    (412, "failed_precondition: can't find capacity", errors.NoCapacity, REGION),
    (409, "governor policy blocked start", errors.NoCapacity, HOST),
    (409, "deploys to this host are temporarily disabled", errors.NoCapacity, HOST),
    (403, "would use 262144 MB, which is over the allowed quota", errors.QuotaReached, ""),
    (
        422,
        "Your organization has reached its machine limit. Please contact billing@fly.io",
        errors.QuotaReached,
        "",
    ),
    (
        409,
        'already_exists: unique machine name violation, machine ID 148e212b1d4e89 already exists with name "mq-1"',
        errors.NameTaken,
        "",
    ),
    (422, {"error": "Name has already been taken", "status": "name_taken"}, errors.NameTaken, ""),
    (409, "aborted: machine update failed due to concurrent update", errors.Conflict, ""),
    (422, "Reached the automated scaling limits, write to sales@fly.io", errors.QuotaReached, ""),
    (403, "To launch more than 1 machine per app please add a card: billing@fly.io", errors.QuotaReached, ""),
    (403, {"error": "could not find a candidate host", "status": "unknown"}, errors.NoCapacity, REGION),
    (409, "failed_precondition: lease currently held by someone@example.com", errors.LeaseHeld, ""),
    (409, "aborted: lease currently held by a@b.c, expires at 2026-11-21T07:00:00Z", errors.LeaseHeld, ""),
    (412, "failed_precondition: lease nonce does not match", errors.LeaseHeld, ""),
    (412, "failed_precondition: machine_version does not match the current version", errors.Conflict, ""),
    (409, "", errors.Conflict, ""),
    (412, "", errors.Conflict, ""),
    (412, "failed_precondition: unable to start machine from current state: 'created'", errors.Conflict, ""),
    (412, "failed_precondition: machine getting replaced, refusing to start", errors.Conflict, ""),
    (
        400,
        "failed to get manifest registry.fly.io/shop:deployment-01H: unexpected status: MANIFEST_UNKNOWN",
        errors.ImageNotFound,
        "",
    ),
    (400, "invalid_argument: invalid config.guest.memory_mb, minimum required 2048 MiB", errors.Rejected, ""),
    (422, "invalid JSON", errors.Rejected, ""),
    (422, "target region xyz not found", errors.Rejected, ""),
    (404, "target region xyz not found", errors.Rejected, ""),
    (401, "Authenticate: token validation error", errors.Unauthorized, ""),
    (403, "forbidden", errors.Unauthorized, ""),
    (404, "404 page not found\n", errors.NotFound, ""),
    (404, "not_found: machine not found", errors.NotFound, ""),
    (404, "", errors.NotFound, ""),
    (408, "deadline exceeded", errors.Ambiguous, ""),
    (429, "resource_exhausted: rate limit exceeded", errors.RateLimited, ""),
    (500, "internal", errors.Ambiguous, ""),
    (502, "<html>bad gateway</html>", errors.Ambiguous, ""),
    (503, "", errors.Ambiguous, ""),
    (504, "insufficient resources available to fulfill request", errors.Ambiguous, ""),
    (408, "", errors.Ambiguous, ""),
    (504, "", errors.Ambiguous, ""),
    (501, "unimplemented: suspend is not emulated", errors.Rejected, ""),
    (400, "", errors.Rejected, ""),
    (401, "", errors.Unauthorized, ""),
    (403, "", errors.Unauthorized, ""),
    (429, "", errors.RateLimited, ""),
    (400, "invalid_argument: json: cannot unmarshal array into Go value of type stopRequest", errors.Rejected, ""),
    (418, "teapot", errors.Rejected, ""),
    (302, "", MachinesError, ""),
]


def shaped(text: str | dict[str, str]) -> list[str]:
    """A text in each of the shapes that bodies come in."""
    if isinstance(text, dict):
        return [json.dumps(text)]
    return [text, json.dumps({"error": text}), json.dumps({"message": text})]


@pytest.mark.parametrize(("status", "text", "error", "scope"), TEXTS)
def test_a_text_has_one_meaning_in_every_shape(
    status: int, text: str | dict[str, str], error: type[MachinesError], scope: str
) -> None:
    for body in shaped(text):
        found = classify(Answer("POST", MACHINES, status, body, "01REQ-iad"))
        assert type(found) is error
        assert getattr(found, "scope", "") == scope
        assert (found.method, found.path, found.status, found.request_id) == ("POST", MACHINES, status, "01REQ-iad")


def test_the_taken_name_names_its_machine() -> None:
    text = 'already_exists: unique machine name violation, machine ID 148e212b1d4e89 already exists with name "mq-1"'
    found = classify(Answer("POST", MACHINES, 409, json.dumps({"error": text})))
    assert isinstance(found, errors.NameTaken)
    assert found.machine_id == "148e212b1d4e89"


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", f"{MACHINES}/1/wait", 408, errors.WaitTimeout),
        ("GET", f"{MACHINES}/1", 408, errors.Unreachable),
        ("POST", f"{MACHINES}/1/start", 408, errors.Ambiguous),
        ("GET", MACHINES, 500, errors.Unreachable),
        ("GET", f"{MACHINES}/1/wait", 503, errors.Unreachable),
        ("DELETE", f"{MACHINES}/1", 502, errors.Ambiguous),
    ],
)
def test_no_answer_is_ambiguous_only_where_something_may_have_happened(
    method: str, path: str, status: int, error: type[MachinesError]
) -> None:
    assert type(classify(Answer(method, path, status, "deadline_exceeded: x"))) is error


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_read_logs_is_told_which_token_may(status: int) -> None:
    found = classify(Answer("GET", "https://api.fly.io/api/v1/apps/shop/logs", status, "unauthorized"))
    assert type(found) is errors.LogsRefused
    assert "readonly" in found.advice
    assert type(classify(Answer("GET", MACHINES, status, "unauthorized"))) is errors.Unauthorized


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("404 page not found\n", "404 page not found"),
        ('{"error":"internal: x","status":"unknown"}', "internal: x"),
        ('{"message":"Not authorized"}', "Not authorized"),
        ('{"error":null,"message":"second"}', "second"),
        ('{"errors":[{"detail":"third"}]}', '{"errors":[{"detail":"third"}]}'),
        ("<html>\n<head><title>502 Bad Gateway</title></head></html>", "502 Bad Gateway"),
        ('["a list"]', '["a list"]'),
        ("", ""),
        ("[" * 100_000, "[" * errors.LONGEST_MESSAGE),
    ],
)
def test_the_sentence_is_found_in_any_body(body: str, message: str) -> None:
    assert classify(Answer("GET", MACHINES, 500, body)).message == message


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("1.5", 1.5), ("", None), ("Wed, 21 Oct", None)])
def test_retry_after_counts_when_it_is_a_number(header: str, seconds: float | None) -> None:
    found = classify(Answer("POST", MACHINES, 429, "x", retry_after=header))
    assert isinstance(found, errors.RateLimited)
    assert found.retry_after == seconds


def every_error() -> list[type[MachinesError]]:
    found, todo = [], [MachinesError]
    while todo:
        found.append(todo.pop())
        todo += found[-1].__subclasses__()
    return found


@pytest.mark.parametrize("error", every_error())
def test_every_error_has_advice_and_can_be_pickled(error: type[MachinesError]) -> None:
    raised = error("text", method="GET", path="/x", status=400, request_id="01")
    assert raised.advice.endswith(".")
    assert error.__doc__
    copy = pickle.loads(pickle.dumps(raised))  # noqa: S301  # our own
    assert (type(copy), str(copy), copy.__dict__) == (error, str(raised), raised.__dict__)


def test_a_long_page_is_cut() -> None:
    assert len(classify(Answer("GET", "/x", 500, "x" * 100_000)).message) <= errors.LONGEST_MESSAGE
