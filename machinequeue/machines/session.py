"""One pooled HTTP connection to the Machines API: where it is, who we are, and what an answer means.

Repeats reads a few times and never a write: whoever knows what the write means decides that.
"""

from __future__ import annotations

import ipaddress
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from machinequeue.machines.errors import (
    Ambiguous,
    Answer,
    MachinesError,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unreachable,
    classify,
)
from machinequeue.machines.pacing import LONGEST_PACE, Pace
from machinequeue.machines.schema import Lease

PUBLIC_URL = "https://api.machines.dev"
INTERNAL_HOST = "_api.internal"
LOGS_URL = "https://api.fly.io"
LEASE_HEADER = "fly-machine-lease-nonce"
MACAROON_PREFIXES = ("fm1r_", "fm1a_", "fm2_")
SHORTEST_SECRET = 8
READ_TRIES = 3
RATE_PAUSE = 1.0
"""Seconds to wait after a 429 that names none."""

Params = list[tuple[str, str | int | float | bool | None]]

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it is asked for. What it sends shows in no repr: a traceback with variables must stay presentable."""

    method: str
    path: str
    params: Params | None = None
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    hide: frozenset[str] = field(default=frozenset(), repr=False)
    """Values that must not show in an error, should the answer quote them."""
    lease: Lease | None = None
    timeout: float | None = None
    """Seconds to wait for the answer, where it is not the session's usual."""
    action: str = ""
    """What is paced for the whole app: "create" or "list"."""
    largest: int = 0
    """Bytes of the answer that are read; more is an error. 0: whatever comes."""
    once: bool = False
    """A read that is not to be repeated."""
    usable: Callable[[Any], bool] | None = field(default=None, repr=False)
    """Whether a success's JSON (None when there is none) is what was asked for; nothing is expected without it."""


def authorization(token: str) -> str:
    """The header for a token as people paste it: FlyV1 with its macaroons when it has any, else Bearer.

    A header that mixes macaroons with user tokens is refused by Fly, so only the macaroons are kept.
    Raises Unauthorized for what no header can carry; it never quotes it.
    """
    bare = token.strip()
    for scheme in ("bearer ", "flyv1 "):
        if bare.lower().startswith(scheme):
            bare = bare[len(scheme) :].strip()
    macaroons = [part.strip() for part in bare.split(",") if part.strip().startswith(MACAROON_PREFIXES)]
    kept = ",".join(macaroons) or bare
    if not all("!" <= letter <= "~" for letter in kept):
        raise Unauthorized("the token holds a space, a line break or a letter that no token has; was it pasted whole?")
    return f"FlyV1 {kept}" if macaroons else f"Bearer {kept}"


def normal_base(url: str) -> str:
    """The base address without `/v1`; a bare host gets the scheme that Fly uses for it. Raises ValueError."""
    if "://" not in url:
        private = url.startswith(INTERNAL_HOST) or is_loopback(f"http://{url}")
        url = f"{'http' if private else 'https'}://{url}"
    base = url.rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        known = httpx.URL(base)
    except httpx.InvalidURL:
        known = httpx.URL("")
    if known.scheme not in ("http", "https") or not known.host:
        raise ValueError(f"{url!r} is no address of the Machines API, as {PUBLIC_URL} is.")
    return base


class _Endless(Exception):
    """An answer is larger than it may be."""


class Session:
    """Sends calls and raises `MachinesError`s. Safe to share between threads."""

    def __init__(  # noqa: PLR0913  # all by keyword
        self,
        *,
        app: str,
        token: str,
        base_url: str,
        transport: httpx.BaseTransport | None,
        timeout: float,
        read_tries: int,
        pace: Pace | None,
        pause: Callable[[float], None],
        user_agent: str,
    ) -> None:
        self.base_url = normal_base(base_url)
        self.logs_url = LOGS_URL if _is_fly(self.base_url) else self.base_url
        self.timeout = timeout
        self.pause = pause
        self._read_tries = read_tries
        self._app = app
        self._pace = pace
        self._token = token
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": authorization(token), "User-Agent": user_agent},
            transport=transport,
            timeout=timeout,
            verify=_trust(self.base_url),
            trust_env=not is_loopback(self.base_url),
        )

    def __repr__(self) -> str:
        return f"<Session {self.base_url}>"

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    def send(self, call: Call) -> httpx.Response:
        """One call; 2xx is returned, anything else raises. A read is repeated while its time lasts."""
        deadline = time.monotonic() + (call.timeout or self.timeout)
        tries = 0
        while True:
            outcome = self._exchange(call)
            if isinstance(outcome, httpx.Response):
                return outcome
            tries += 1
            seconds = _before_again(outcome, tries)
            may = tries < self._read_tries and seconds <= LONGEST_PACE and _may_repeat(call, outcome)
            if not may or time.monotonic() + seconds > deadline:
                # Raised here, outside any except: what httpx raised holds the request, with its headers and body.
                raise outcome
            self.pause(seconds)

    def _exchange(self, call: Call) -> httpx.Response | MachinesError:
        held_back = self._await_turn(call)
        if held_back is not None:
            return held_back
        usual = self.timeout
        try:
            response = self._response(
                call,
                params=call.params or None,
                json=None if call.body is None else dict(call.body),
                headers={LEASE_HEADER: call.lease.nonce} if call.lease else None,
                timeout=httpx.Timeout(usual, read=usual if call.timeout is None else call.timeout),
            )
        except _Endless:
            text = f"the answer has more than {call.largest} bytes, and was not read further"
            return TooLarge(text, method=call.method, path=call.path)
        except _NOT_SENT as error:
            return self._failed(Unreachable, call, error)
        except httpx.HTTPError as error:
            return self._failed(Unreachable if call.method == "GET" else Ambiguous, call, error)
        if not response.is_success:
            return self._refused(call, response)
        if call.usable is not None and not call.usable(json_of(response)):
            return _unusable(call, response)
        return response

    def _response(self, call: Call, **request: Any) -> httpx.Response:
        if not call.largest:
            return self._http.request(call.method, call.path, **request)
        body = bytearray()
        with self._http.stream(call.method, call.path, **request) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > call.largest:
                    raise _Endless
        # What was read is decoded; the headers that say how it was coded would have it decoded again.
        headers = [
            pair for pair in response.headers.multi_items() if pair[0] not in ("content-encoding", "content-length")
        ]
        return httpx.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)

    def _await_turn(self, call: Call) -> RateLimited | None:
        """Wait for the turn of a paced call; the error when it comes too late."""
        if self._pace is None or not call.action:
            return None
        longest = min(LONGEST_PACE, self.timeout)
        seconds = self._pace.reserve(self._app, call.action, longest)
        if seconds > longest:
            text = f"not sent: the app's turn for another {call.action} comes in {seconds:.1f} s"
            return RateLimited(text, retry_after=seconds, method=call.method, path=call.path)
        if seconds > 0:
            self.pause(seconds)
        return None

    def _failed(self, kind: type[MachinesError], call: Call, error: Exception) -> MachinesError:
        return kind(self._clean(f"{type(error).__name__}: {error}", call), method=call.method, path=call.path)

    def _refused(self, call: Call, response: httpx.Response) -> MachinesError:
        answer = Answer(
            method=call.method,
            path=call.path,
            status=response.status_code,
            text=response.text,
            request_id=request_id(response),
            retry_after=response.headers.get("retry-after", ""),
        )
        error = classify(answer, lambda text: self._clean(text, call))
        if isinstance(error, RateLimited) and self._pace is not None and call.action:
            self._pace.refused(self._app, call.action, error.retry_after or RATE_PAUSE)
        return error

    def _clean(self, text: str, call: Call) -> str:
        bare = authorization(self._token).partition(" ")[2]
        nonce = call.lease.nonce if call.lease else ""
        for secret in sorted({self._token, bare, nonce, *bare.split(","), *call.hide}, key=len, reverse=True):
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, "[hidden]")
        return text


def json_of(response: httpx.Response) -> Any:
    """The body, None when it is no JSON."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _unusable(call: Call, response: httpx.Response) -> MachinesError:
    # The body is not quoted: nobody knows what it is.
    kind = Unreachable if call.method == "GET" else Ambiguous
    text = "the answer is not what was asked for: broken off, of another kind, or of something between here and Fly"
    status = response.status_code
    return kind(text, method=call.method, path=call.path, status=status, request_id=request_id(response))


def _may_repeat(call: Call, error: MachinesError) -> bool:
    return call.method == "GET" and not call.once and isinstance(error, Unreachable | RateLimited)


def _before_again(error: MachinesError, tries: int) -> float:
    """Seconds, spread so that many who failed together do not come back together."""
    wanted = error.retry_after or RATE_PAUSE if isinstance(error, RateLimited) else 0.0
    return wanted + random.uniform(0.1, 0.3) * tries


def request_id(response: httpx.Response) -> str:
    """Fly's id for the exchange, empty when it gave none."""
    return str(response.headers.get("fly-request-id", ""))


def _host(base: str) -> str:
    return httpx.URL(base).host or ""


def is_loopback(base: str) -> bool:
    """Whether an address means this computer: localhost, 127.0.0.0/8 or ::1."""
    try:
        host = _host(base)
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except (httpx.InvalidURL, ValueError):
        return False


def _is_fly(base: str) -> bool:
    return base == PUBLIC_URL or _host(base) == INTERNAL_HOST


def _trust(base: str) -> ssl.SSLContext | bool:
    # Reading the certificate store takes tens of milliseconds, which plain HTTP never needs. Logs of Fly are at HTTPS.
    return True if base.startswith("https:") or _is_fly(base) else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
