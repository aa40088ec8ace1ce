"""One request: to which machine, what an answer with `fly-replay` leads to, what reaches the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import httpx

from machinequeue.machines.errors import MachinesError, NotFound
from machinequeue.machines.proxy import headers
from machinequeue.machines.proxy.candidates import Candidate, Wish
from machinequeue.machines.proxy.fleet import Fleet, Unreached
from machinequeue.machines.proxy.headers import Headers
from machinequeue.machines.proxy.replay import (
    BIGGEST_ORDER,
    JSON_TYPE,
    BadReplay,
    Replay,
    failure,
    region_list,
    source,
)

BIGGEST_REPLAYED = 1_000_000
MOST_REPLAYS = 10
CONNECT_SECONDS = 2.0
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
NOTHING = httpx.ByteStream(b"")


class Refused(Exception):
    """The edge answers itself: a status, and a sentence for the developer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Body(httpx.AsyncByteStream):
    """The request's body as it comes, kept as long as it is small enough to be sent again."""

    def __init__(self, receive: Receive, given: Headers) -> None:
        length = headers.first(given, b"content-length")
        self._receive = receive
        self._kept: list[bytes] = []
        self._size = 0
        self.empty = length in ("", "0") and not headers.first(given, b"transfer-encoding")
        self.replayable = not length.isdigit() or int(length) <= BIGGEST_REPLAYED
        self._complete = asyncio.Event()
        if self.empty:
            self._complete.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in [*self._kept]:
            yield chunk
        while not self._complete.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if not message.get("more_body", False):
                self._complete.set()
            chunk = message.get("body", b"")
            if chunk:
                self._keep(chunk)
                yield chunk

    def _keep(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > BIGGEST_REPLAYED:
            self.replayable = False
        if self.replayable:
            self._kept.append(chunk)
        else:
            self._kept.clear()

    async def client_gone(self) -> None:
        """Return when the client has gone, once the body is here."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent to a machine."""

    method: str
    target: bytes
    headers: Headers = field(repr=False)
    body: Body | None = None

    def with_headers(self, **added: str) -> Request:
        """With headers of the edge's own, in place of earlier ones of that name."""
        new = {name.replace("_", "-").encode(): value.encode("latin-1", "replace") for name, value in added.items()}
        kept = [(key, value) for key, value in self.headers if key not in new]
        return replace(self, headers=[*kept, *new.items()])


@dataclass(slots=True)
class Reply:
    """A machine's answer, its body still to come. To be closed."""

    fleet: Fleet
    machine: Candidate
    response: httpx.Response
    headers: Headers
    closed: bool = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises httpx.HTTPError when the machine breaks off."""
        stream = self.response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        async for chunk in stream:
            yield chunk

    async def close(self) -> None:
        """Give the connection and the machine back."""
        if not self.closed:
            self.closed = True
            try:
                await self.response.aclose()
            finally:
                self.fleet.release(self.machine)


@dataclass(frozen=True, slots=True)
class Ways:
    """To the machines: over connections that are kept, or over one that is new for each request."""

    kept: httpx.AsyncHTTPTransport
    new: httpx.AsyncHTTPTransport

    def of(self, method: str) -> httpx.AsyncHTTPTransport:
        """The way of a request."""
        # A machine may close a kept connection at this very moment. What must not be asked twice goes on a new one.
        return self.kept if method in SAFE_METHODS else self.new

    async def close(self) -> None:
        """Close the kept connections."""
        await self.kept.aclose()
        await self.new.aclose()


class Exchange:
    """Follows one request until a machine answers it. `machines` are the ids that were asked, in order."""

    def __init__(self, fleets: Callable[[str], Fleet], ways: Ways, patience_seconds: float) -> None:
        self._fleets = fleets
        self._ways = ways
        self._patience_seconds = patience_seconds
        self._loop = asyncio.get_running_loop()
        self.machines: list[str] = []

    async def answer(self, app: str, request: Request) -> Reply:
        """The answer for the client. Raises Refused and ClientGone."""
        try:
            return await self._answer(app, request)
        except Unreached as error:
            raise Refused(503, str(error)) from error
        except NotFound as error:
            raise Refused(404, f"there is no app {app}") from error
        except MachinesError as error:
            kind = type(error).__name__
            raise Refused(503, f"the Machines API does not say which machines there are ({kind})") from error
        except BadReplay as error:
            raise Refused(502, f"fly-replay: {error}") from error

    async def _answer(self, app: str, request: Request) -> Reply:
        reply = await self._reach(app, _wish_of_client(request.headers), request, self._deadline())
        for _ in range(MOST_REPLAYS):
            order = await _order(reply)
            if order is None:
                return reply
            await reply.close()
            if request.body is not None and not request.body.replayable:
                raise BadReplay("a request of more than 1 MB cannot be replayed")
            reply, final = await self._follow(order, reply, request)
            if final:
                return reply
        await reply.close()
        raise BadReplay(f"{MOST_REPLAYS} replays led to no answer")

    async def _follow(self, order: Replay, before: Reply, request: Request) -> tuple[Reply, bool]:
        """The answer to the replayed request, and whether it must be the last."""
        origin, app = before.machine, order.app or before.fleet.app
        changed = replace(
            request,
            target=order.transform.path.encode() or request.target,
            headers=headers.transformed(request.headers, order.transform),
        ).with_headers(
            fly_replay_src=source(origin.id, origin.region, time.time_ns() // 1000, order.state),
            fly_replay_cache_status="miss",
        )
        began = self._loop.time()
        try:
            return await self._reach(app, _wish_of(order, origin.id), changed, self._deadline(order.timeout)), False
        except (Unreached, NotFound) as error:
            if not order.fallback:
                if isinstance(error, NotFound):
                    raise BadReplay(f"there is no app {app}") from error
                raise
            told = failure(
                order,
                app=app,
                replay_source=origin.id,
                reason=self._reason(error, order),
                elapsed_ms=round((self._loop.time() - began) * 1000),
            )
        return await self._fall_back(order, before, request.with_headers(fly_replay_failed=told)), True

    async def _fall_back(self, order: Replay, before: Reply, request: Request) -> Reply:
        wish = Wish(instance=before.machine.id, instance_forced=order.fallback == "force_self")
        reply = await self._reach(before.fleet.app, wish, request, self._deadline(), tell=False)
        if _orders(reply):
            await reply.close()
            raise BadReplay("the answer to a request that fell back cannot be another replay")
        return reply

    def _reason(self, error: Exception, order: Replay) -> str:
        if not isinstance(error, Unreached) or error.reason == "no_candidate":
            return "no_candidate"
        limited = order.timeout is not None and order.timeout < self._patience_seconds
        return "timeout" if limited else "retries_exhausted"

    def _deadline(self, seconds: float | None = None) -> float:
        return self._loop.time() + min(self._patience_seconds, seconds if seconds is not None else float("inf"))

    async def _reach(self, app: str, wish: Wish, request: Request, deadline: float, tell: bool = True) -> Reply:
        """The answer of a machine of the app that suits the wish. `tell`: say which preferred one was not reached."""
        fleet = self._fleets(app)
        refused: set[str] = set()
        tries = 2 if request.method in SAFE_METHODS and (request.body is None or request.body.empty) else 1
        while True:
            machine = await fleet.acquire(wish, refused, deadline)
            missed = tell and bool(wish.instance) and machine.id != wish.instance
            sent = request.with_headers(fly_preferred_instance_unavailable=wish.instance) if missed else request
            try:
                response = await self._send(machine, sent, deadline)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                fleet.release(machine)
                refused.add(machine.id)
            except httpx.HTTPError as error:
                fleet.release(machine)
                refused.add(machine.id)
                tries -= 1
                # A kept connection that its machine closed meanwhile looks the same; asking is harmless, doing is not.
                if not tries:
                    raise Refused(502, f"machine {machine.id} of app {app} broke off: {type(error).__name__}") from None
            except BaseException:
                fleet.release(machine)
                raise
            else:
                lowered = [(key.lower(), value) for key, value in response.headers.raw]
                self.machines.append(machine.id)
                return Reply(fleet, machine, response, lowered)

    async def _send(self, machine: Candidate, request: Request, deadline: float) -> httpx.Response:
        connect = max(0.05, min(CONNECT_SECONDS, deadline - self._loop.time()))
        return await self._ways.of(request.method).handle_async_request(
            httpx.Request(
                request.method,
                _address(machine.address, machine.service.port),
                headers=request.headers,
                stream=NOTHING if request.body is None or request.body.empty else request.body,
                extensions={"target": request.target, "timeout": {"connect": connect}},
            )
        )


@lru_cache(1024)
def _address(host: str, port: int) -> httpx.URL:
    return httpx.URL(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def _wish_of_client(given: Headers) -> Wish:
    forced_region = region_list(headers.first(given, b"fly-force-region"))
    forced_instance = headers.first(given, b"fly-force-instance-id").strip()
    return Wish(
        regions=forced_region or region_list(headers.first(given, b"fly-prefer-region")),
        region_forced=bool(forced_region),
        instance=forced_instance or headers.first(given, b"fly-prefer-instance-id").strip(),
        instance_forced=bool(forced_instance),
    )


def _wish_of(order: Replay, origin: str) -> Wish:
    return Wish(
        regions=order.regions,
        region_forced=bool(order.regions),
        instance=order.instance or order.prefer_instance,
        instance_forced=bool(order.instance),
        not_to=frozenset((origin,)) if order.elsewhere else frozenset(),
    )


def _orders(reply: Reply) -> bool:
    kind = headers.first(reply.headers, b"content-type").partition(";")[0].strip().lower()
    return kind == JSON_TYPE or bool(headers.first(reply.headers, b"fly-replay"))


async def _order(reply: Reply) -> Replay | None:
    """What the answer asks of the edge, None when it is for the client. Closes the reply when it raises."""
    if not _orders(reply):
        return None
    try:
        text = headers.first(reply.headers, b"fly-replay")
        # The body that comes with a header says nothing, but once it is read the connection can be kept.
        body = b"" if text and not _is_short(reply) else await _read(reply)
        return Replay.from_header(text) if text else Replay.from_json(body)
    except httpx.HTTPError:
        raise BadReplay("the machine broke off in the middle of its order") from None
    finally:
        await reply.close()


def _is_short(reply: Reply) -> bool:
    length = headers.first(reply.headers, b"content-length")
    return length.isdigit() and int(length) <= BIGGEST_ORDER


async def _read(reply: Reply) -> bytes:
    body = b""
    async for chunk in reply.chunks():
        body += chunk
        if len(body) > BIGGEST_ORDER:
            raise BadReplay(f"the body is longer than {BIGGEST_ORDER} bytes")
    return body
