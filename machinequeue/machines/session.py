"""One pooled HTTP connection to the Machines API: where it is, who we are, and what an answer means.

Never retries a write: whoever knows what the write means decides that.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from machinequeue.machines.errors import Ambiguous, Answer, MachinesError, Unreachable, classify

PUBLIC_URL = "https://api.machines.dev"
LOGS_URL = "https://api.fly.io"
MACAROON_PREFIXES = ("fm1r_", "fm1a_", "fm2_")
SHORTEST_SECRET = 8

Params = list[tuple[str, str | int | float | bool | None]]

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def authorization(token: str) -> str:
    """The header for a token as people paste it: FlyV1 with its macaroons when it has any, else Bearer.

    A header that mixes macaroons with user tokens is refused by Fly, so only the macaroons are kept.
    """
    bare = token.strip()
    for scheme in ("bearer ", "flyv1 "):
        if bare.lower().startswith(scheme):
            bare = bare[len(scheme) :].strip()
    macaroons = [part.strip() for part in bare.split(",") if part.strip().startswith(MACAROON_PREFIXES)]
    return f"FlyV1 {','.join(macaroons)}" if macaroons else f"Bearer {bare}"


def normal_base(url: str) -> str:
    """The base address without `/v1`; a bare host gets the scheme that Fly uses for it."""
    if "://" not in url:
        private = url.startswith(("_api.internal", "127.0.0.1", "localhost", "[::1]"))
        url = f"{'http' if private else 'https'}://{url}"
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class Session:
    """Sends calls and raises `MachinesError`s. Safe to share between threads."""

    def __init__(self, token: str, base_url: str, transport: httpx.BaseTransport | None, timeout: float) -> None:
        self.base_url = normal_base(base_url)
        self.logs_url = LOGS_URL if self.base_url == PUBLIC_URL else self.base_url
        self.timeout = timeout
        self._token = token
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": authorization(token), "User-Agent": "machinequeue"},
            transport=transport,
            timeout=timeout,
            verify=_trust(self.base_url),
            trust_env=not _is_loopback(self.base_url),
        )

    def __repr__(self) -> str:
        return f"<Session {self.base_url}>"

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        hide: Iterable[str] = (),
    ) -> httpx.Response:
        """One exchange; 2xx is returned, anything else raises. `hide` are values that must not show in an error."""
        try:
            response = self._exchange(method, path, params, body, timeout)
        except _NOT_SENT as error:
            raise self._failed(Unreachable, method, path, error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            kind = Unreachable if method == "GET" else Ambiguous
            raise self._failed(kind, method, path, error) from error
        if response.is_success:
            return response
        raise self._refused(method, path, response, hide)

    def _exchange(
        self, method: str, path: str, params: Params | None, body: Mapping[str, Any] | None, timeout: float | None
    ) -> httpx.Response:
        for last in (False, True):
            try:
                return self._http.request(
                    method,
                    path,
                    params=params or None,
                    json=None if body is None else dict(body),
                    timeout=self.timeout if timeout is None else timeout,
                )
            except (httpx.ReadError, httpx.RemoteProtocolError):
                # A kept connection that the other side closed meanwhile. Only a read may simply be sent again.
                if last or method != "GET":
                    raise
        raise AssertionError("unreachable")

    def _failed(self, kind: type[MachinesError], method: str, path: str, error: Exception) -> MachinesError:
        return kind(self._clean(f"{type(error).__name__}: {error}", ()), method=method, path=path)

    def _refused(self, method: str, path: str, response: httpx.Response, hide: Iterable[str]) -> MachinesError:
        answer = Answer(
            method=method,
            path=path,
            status=response.status_code,
            text=response.text,
            request_id=request_id(response),
            retry_after=response.headers.get("retry-after", ""),
        )
        error = classify(answer)
        error.message = self._clean(error.message, hide)
        error.args = (error.message,)
        return error

    def _clean(self, text: str, hide: Iterable[str]) -> str:
        bare = authorization(self._token).partition(" ")[2]
        for secret in sorted({self._token, bare, *bare.split(","), *hide}, key=len, reverse=True):
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, "[hidden]")
        return text


def request_id(response: httpx.Response) -> str:
    """Fly's id for the exchange, empty when it gave none."""
    return str(response.headers.get("fly-request-id", ""))


def _is_loopback(base: str) -> bool:
    return (httpx.URL(base).host or "") in ("127.0.0.1", "localhost", "::1")


def _trust(base: str) -> ssl.SSLContext | bool:
    # Reading the certificate store takes tens of milliseconds, which plain HTTP (emulator, _api.internal) never needs.
    return True if base.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
