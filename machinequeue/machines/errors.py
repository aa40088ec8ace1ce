"""Everything that can go wrong with the Machines API, by meaning.

    MachinesError
    ├── Unauthorized          the token is wrong, or not for this app
    │   └── LogsRefused       the token may do much, but not read logs
    ├── NotFound              no such app or machine (or: not visible yet)
    ├── Rejected              the request itself is wrong
    │   └── ImageNotFound     the registry does not know the image
    ├── Conflict              the machine is in another state, or somebody else is changing it
    │   ├── NameTaken         another live machine has this name
    │   └── LeaseHeld         somebody holds the machine's lease
    ├── NoCapacity            the region or the host is full
    ├── QuotaReached          the organisation may not have more
    ├── RateLimited           too many requests
    ├── WaitTimeout           the machine did not reach the state in time
    ├── TooLarge              the answer is larger than what is read of it
    ├── Unreachable           no usable answer, and nothing was changed
    └── Ambiguous             no usable answer, and the effect may have happened

An error carries method, path, status, Fly's request id and Fly's text: never a header, a token or an environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

LONGEST_MESSAGE = 500


class MachinesError(Exception):
    """The API refused or could not be asked. `retryable` says whether the same call may succeed later."""

    retryable: ClassVar[bool] = False
    advice: ClassVar[str] = "Look at the message; if it makes no sense, give Fly support the request id."

    def __init__(
        self,
        message: str = "",
        *,
        method: str = "",
        path: str = "",
        status: int | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.method = method
        self.path = path
        self.status = status
        self.request_id = request_id

    def __str__(self) -> str:
        call = f"{self.method} {self.path}: " if self.method else ""
        status = f"{self.status} " if self.status is not None else ""
        origin = f" (fly-request-id {self.request_id})" if self.request_id else ""
        return f"{call}{status}{self.message or 'no message'}{origin}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


class Unauthorized(MachinesError):
    """401 or 403: the token is missing, expired, or does not cover this app."""

    advice = "Check FLY_API_TOKEN: it must be a live deploy token of this app (fly tokens create deploy)."


class LogsRefused(Unauthorized):
    """401 or 403 for the logs: deploy tokens may be refused there, and so is an app that does not exist."""

    advice = "Logs may need a token of the organisation (fly tokens create readonly); `fly logs` shows them too."


class NotFound(MachinesError):
    """404: no such app or machine. Just after a create it can mean "not visible yet"."""

    advice = "Check the app's name; a machine that is not found is gone, or was created a moment ago."


class Rejected(MachinesError):
    """400 or 422: the request is wrong and stays wrong."""

    advice = "Correct the machine's configuration (guest, region, image, fields); a retry cannot help."


class ImageNotFound(Rejected):
    """The registry does not know the image: for some seconds after a push, or for good."""

    retryable = True
    advice = "Wait a minute if the image was just pushed; otherwise the tag is gone: use the current release's image."


class Conflict(MachinesError):
    """409 or 412: the machine is in another state, or is being changed by somebody else. Never create another one."""

    retryable = True
    advice = "Wait and try again; if it lasts, look who else manages this machine."


class NameTaken(Conflict):
    """A live machine of the app has this name already; `machine_id` says which, when Fly said so."""

    retryable = False
    advice = "Adopt that machine if it is ours, else choose another name."

    def __init__(self, message: str = "", *, machine_id: str = "", **fields: Any) -> None:
        super().__init__(message, **fields)
        self.machine_id = machine_id


class LeaseHeld(Conflict):
    """Somebody holds the machine's lease."""

    advice = "Wait until the lease ends; a deploy usually holds it."


class NoCapacity(MachinesError):
    """There is no room now: `scope` is "region" (try another region) or "host" (a fresh machine may fit)."""

    retryable = True
    advice = "Try later or another region; list several regions for the queue."

    def __init__(self, message: str = "", *, scope: str = "region", **fields: Any) -> None:
        super().__init__(message, **fields)
        self.scope = scope


class QuotaReached(MachinesError):
    """The organisation has as many machines, or as much memory in the region, as it may have."""

    advice = "Ask billing@fly.io to raise the organisation's limit, or lower max_machines."


class RateLimited(MachinesError):
    """429. `retry_after` is seconds when Fly said so, else None."""

    retryable = True
    advice = "Slow down: about one create or list a second per app. Several apps go faster than one."

    def __init__(self, message: str = "", *, retry_after: float | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.retry_after = retry_after


class WaitTimeout(MachinesError):
    """A wait ended before the machine reached the state. Normal: ask again."""

    retryable = True
    advice = "Wait again, or look at the machine's state and events."


class TooLarge(MachinesError):
    """The answer is larger than what is read of it; what was asked for has happened."""

    advice = "Let the command print less, or write to a file."


class Unreachable(MachinesError):
    """The API did not answer usefully, and nothing was changed."""

    retryable = True
    advice = "Check the network and https://status.flyio.net; work waits until the API answers."


class Ambiguous(MachinesError):
    """The API did not answer usefully, and what was asked may have happened. Look before asking again."""

    retryable = True
    advice = "Look for the machine by name and metadata before creating it again."


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no success: what classification reads. `text` is the body as it came."""

    method: str
    path: str
    status: int
    text: str = ""
    request_id: str = ""
    retry_after: str = ""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The body when it is a JSON object, else empty."""
        try:
            body = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def message(self) -> str:
        """Fly's sentence: from `error`, from `message`, or the body as plain text; of a page of HTML its words."""
        fields = self.fields
        for key in ("error", "message"):
            if isinstance(fields.get(key), str) and fields[key]:
                return str(fields[key])
        text = self.text.strip()
        return " ".join(re.sub(r"<[^>]*>", " ", text).split()) if text.startswith("<") else text


def _is_wait(answer: Answer) -> bool:
    return answer.method == "GET" and answer.path.endswith("/wait")


def _is_logs(answer: Answer) -> bool:
    return answer.method == "GET" and answer.path.endswith("/logs")


def _is_read(answer: Answer) -> bool:
    return answer.method in ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table: an answer with one of `statuses` and, where given, this `code` (the body's `status`)
    and this `pattern` in its message, to a call that is `call`, means `error`."""

    error: type[MachinesError]
    statuses: frozenset[int]
    pattern: str = ""
    code: str = ""
    scope: str = ""
    call: Callable[[Answer], bool] | None = None

    def matches(self, answer: Answer) -> bool:
        """Whether the answer is what this line describes."""
        return (
            answer.status in self.statuses
            and (not self.code or answer.fields.get("status") == self.code)
            and (not self.pattern or re.search(self.pattern, answer.message, re.IGNORECASE) is not None)
            and (self.call is None or self.call(answer))
        )


_REFUSALS = frozenset({400, 403, 409, 412, 422})
_BAD_REQUEST = frozenset({400, 404, 422})
_SERVER = frozenset(range(500, 600))
_ANY = frozenset(range(300, 600))

# Capacity comes with five statuses, so texts are read before statuses. The first line that matches wins.
TABLE: tuple[Rule, ...] = (
    Rule(NoCapacity, _REFUSALS, code="insufficient_capacity", scope="region"),
    Rule(NoCapacity, _REFUSALS, code="volume_placement_capacity", scope="host"),
    Rule(NameTaken, _REFUSALS, code="name_taken"),
    Rule(NameTaken, _REFUSALS, r"unique machine name violation"),
    Rule(NoCapacity, _REFUSALS, r"could not find a candidate host", scope="region"),
    Rule(NoCapacity, _REFUSALS, r"insufficient \w+ available to fulfill request", scope="host"),
    Rule(NoCapacity, _REFUSALS, r"could not reserve resource for machine", scope="host"),
    Rule(NoCapacity, _REFUSALS, r"governor policy blocked start", scope="host"),
    Rule(NoCapacity, _REFUSALS, r"deploys to this host are temporarily disabled", scope="host"),
    Rule(NoCapacity, _REFUSALS, r"no capacity\W*$", scope="region"),
    Rule(NoCapacity, _REFUSALS, r"(find|not enough|insufficient|out of) capacity", scope="region"),
    Rule(QuotaReached, frozenset({402})),
    Rule(QuotaReached, _REFUSALS, r"over the allowed quota"),
    Rule(QuotaReached, _REFUSALS, r"reached its \w+ limit|\w+@fly\.io"),
    Rule(ImageNotFound, _BAD_REQUEST, r"MANIFEST_UNKNOWN|failed to get manifest"),
    Rule(Rejected, _BAD_REQUEST | {412}, r"target region .*not found"),
    Rule(RateLimited, frozenset({429})),
    Rule(LeaseHeld, frozenset({409, 412}), r"\blease\b"),
    Rule(Conflict, frozenset({409, 412})),
    Rule(LogsRefused, frozenset({401, 403}), call=_is_logs),
    Rule(Unauthorized, frozenset({401, 403})),
    Rule(NotFound, frozenset({404})),
    Rule(Rejected, frozenset({501})),
    Rule(WaitTimeout, frozenset({408}), call=_is_wait),
    Rule(Unreachable, _SERVER | {408}, call=_is_read),
    Rule(Ambiguous, _SERVER | {408}),
    Rule(Rejected, frozenset(range(400, 500))),
    Rule(MachinesError, _ANY),
)

_MACHINE_ID = re.compile(r"machine ID (\w+)", re.IGNORECASE)


def classify(answer: Answer, clean: Callable[[str], str] = str) -> MachinesError:
    """The error that an answer means; `clean` takes out of its text what must not show."""
    rule = next((line for line in TABLE if line.matches(answer)), Rule(MachinesError, _ANY))
    fields: dict[str, Any] = {
        "method": answer.method,
        "path": answer.path,
        "status": answer.status,
        "request_id": answer.request_id,
    }
    if issubclass(rule.error, NameTaken):
        found = _MACHINE_ID.search(answer.message)
        fields["machine_id"] = found.group(1) if found else ""
    if issubclass(rule.error, NoCapacity):
        fields["scope"] = rule.scope
    if issubclass(rule.error, RateLimited):
        fields["retry_after"] = _seconds(answer.retry_after)
    # Cleaned before it is cut: half a secret would not be found.
    return rule.error(clean(answer.message)[:LONGEST_MESSAGE], **fields)


def _seconds(header: str) -> float | None:
    return float(header) if re.fullmatch(r"\d+(\.\d+)?", header.strip()) else None
