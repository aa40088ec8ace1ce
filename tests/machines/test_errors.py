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
    (409, "failed_precondition: lease currently held by someone@example.com", errors.LeaseHeld, ""),
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
