"""Where clients come in: HTTP as an ASGI application, WebSockets as bytes that are passed on unread."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx

from machinequeue.machines.emulator.journal import Journal
from machinequeue.machines.emulator.names import is_app_name, ulid
from machinequeue.machines.proxy import headers
from machinequeue.machines.proxy.exchange import Body, ClientGone, Exchange, Receive, Refused, Reply, Request, Ways
from machinequeue.machines.proxy.fleet import Fleet
from machinequeue.machines.proxy.headers import Arrival, Headers

LONGEST_HEAD = 131_072
CHUNK = 65_536
PLAIN = (b"content-type", b"text/plain; charset=utf-8")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_APP_HOST = re.compile(r"(?:[^:]*\.)?([a-z0-9-]+)\.(?:localhost|fly\.dev|internal|flycast)(?::\d+)?", re.IGNORECASE)


def app_of(host: str, default: str) -> str:
    """The app that a Host header names, else the default."""
    found = _APP_HOST.fullmatch(host)
    name = found.group(1).lower() if found else default
    return name if is_app_name(name) else default


class Door:
    """The ASGI application. `fleets` gives the fleet of an app by its name."""

    def __init__(
        self,
        fleets: Callable[[str], Fleet],
        journal: Journal,
        *,
        default_app: str,
        region: str,
        patience_seconds: float,
        verbose: bool,
    ) -> None:
        # About as long as Fly's proxy keeps a connection to a machine.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=200, keepalive_expiry=4)
        self._ways = Ways(
            kept=httpx.AsyncHTTPTransport(limits=limits, trust_env=False, verify=False),
            new=httpx.AsyncHTTPTransport(
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0), trust_env=False, verify=False
            ),
        )
        self._fleets = fleets
        self._journal = journal
        self._default_app = default_app
        self._region = region
        self._patience_seconds = patience_seconds
        self._verbose = verbose

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        given: Headers = scope["headers"]
        body = Body(receive, given)
        work = asyncio.create_task(self._serve(scope, given, body, send))
        gone = asyncio.create_task(body.client_gone())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            # The machine's place is given back before this request counts as over.
            outcome, _ = await asyncio.gather(work, gone, return_exceptions=True)
            if isinstance(outcome, Exception):
                traceback.print_exception(outcome)  # a fault of the edge itself; the client gets a 500

    async def _serve(self, scope: Scope, given: Headers, body: Body, send: Send) -> None:
        arrival = self.arrival(scope["client"], scope["server"])
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        target = scope["raw_path"] + query
        visit = self.visit(scope["method"], target, given, arrival, body)
        try:
            reply = await visit.answer()
        except Refused as refused:
            await _send_refusal(send, refused, arrival.request_id)
            return
        except ClientGone:
            return
        finally:
            visit.note()
        try:
            passed = headers.for_client(reply.headers, arrival.request_id)
            await send({"type": "http.response.start", "status": reply.response.status_code, "headers": passed})
            async for chunk in reply.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            # Before the end is sent: from then on the client counts as gone, and what is left to do is cancelled.
            await reply.close()
            await send({"type": "http.response.body", "body": b""})
        except httpx.HTTPError:
            return  # broken off: the client's connection is closed before its end, which says the same
        finally:
            await reply.close()

    def arrival(self, client: tuple[str, int] | None, server: tuple[str, int] | None) -> Arrival:
        """How a request came, with a new id."""
        client_host, _ = client or ("", 0)
        address, port = server or ("", 0)
        return Arrival(client_host, address, str(port), self._region, f"{ulid()}-{self._region}")

    def visit(self, method: str, target: bytes, given: Headers, arrival: Arrival, body: Body | None) -> Visit:
        """One request on its way."""
        app = app_of(headers.first(given, b"host"), self._default_app)
        passed = headers.for_machine(given, arrival, upgrade=body is None)
        if not headers.first(given, b"host"):
            passed.append((b"host", f"{app}.localhost".encode()))
        exchange = Exchange(self._fleets, self._ways, self._patience_seconds)
        return Visit(exchange, app, Request(method, target, passed, body), arrival, self._write)

    def _write(self, **fields: Any) -> None:
        self._journal.write("request", **fields)
        if self._verbose:
            machine = fields["machines"][-1] if fields["machines"] else "-"
            line = f"{fields['method']} {fields['path']} {fields['status']} {machine} {fields['ms']} ms"
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    async def close(self) -> None:
        """Close the kept connections."""
        await self._ways.close()


class Visit:
    """One request with what is written down about it: never a query, a header or a body."""

    def __init__(
        self, exchange: Exchange, app: str, request: Request, arrival: Arrival, write: Callable[..., None]
    ) -> None:
        self._exchange = exchange
        self._app = app
        self._request = request
        self._arrival = arrival
        self._write = write
        self._began = time.perf_counter()
        self._status = 499  # the client went away before there was an answer

    async def answer(self) -> Reply:
        """See Exchange."""
        try:
            reply = await self._exchange.answer(self._app, self._request)
        except Refused as refused:
            self._status = refused.status
            raise
        self._status = reply.response.status_code
        return reply

    def note(self) -> None:
        """Write the line, when the answer's head is known."""
        path = self._request.target.partition(b"?")[0].decode("latin-1")
        self._write(
            app=self._app,
            method=self._request.method,
            path="".join(letter if letter.isprintable() else "?" for letter in path),
            status=self._status,
            machines=self._exchange.machines,
            ms=round((time.perf_counter() - self._began) * 1000, 1),
            request_id=self._arrival.request_id,
        )


def _refusal(refused: Refused, request_id: str) -> tuple[Headers, bytes]:
    text = f"edge: {refused.message}\n".encode()
    length = (b"content-length", str(len(text)).encode())
    return headers.for_client([PLAIN, length], request_id), text


async def _send_refusal(send: Send, refused: Refused, request_id: str) -> None:
    given, text = _refusal(refused, request_id)
    await send({"type": "http.response.start", "status": refused.status, "headers": given})
    await send({"type": "http.response.body", "body": text})


class Tunnel(asyncio.StreamReaderProtocol):
    """A client that asks for a WebSocket: the server hands the connection over, with the request as its first bytes.

    Once a machine agrees, bytes go both ways as they come until either side ends. `door` is set by `tunnels_of`.
    """

    door: Door

    def __init__(self, config: object, server_state: Any, app_state: object) -> None:
        self._client = asyncio.StreamReader(limit=LONGEST_HEAD)
        super().__init__(self._client, self._serve)
        self._connections: set[object] = server_state.connections
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count as a connection of the server, which ends those it knows."""
        self._transport = transport
        self._connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """No longer count."""
        self._connections.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends."""
        if self._transport is not None:
            self._transport.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, given = _parsed(head)
            arrival = self.door.arrival(writer.get_extra_info("peername"), writer.get_extra_info("sockname"))
            visit = self.door.visit(method, target, given, arrival, None)
            try:
                reply = await visit.answer()
            except Refused as refused:
                refusal, text = _refusal(refused, arrival.request_id)
                writer.write(_head(refused.status, refusal) + text)
                return
            finally:
                visit.note()
            try:
                await self._pass_on(reply, arrival.request_id, reader, writer)
            except httpx.HTTPError:
                return
            finally:
                await reply.close()

    async def _pass_on(
        self, reply: Reply, request_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        passed = headers.for_client(reply.headers, request_id)
        if reply.response.status_code != 101:
            writer.write(_head(reply.response.status_code, passed))
            async for chunk in reply.chunks():
                writer.write(chunk)
                await writer.drain()
            return
        agreed = headers.first(reply.headers, b"upgrade").encode("latin-1")
        writer.write(_head(101, [*passed, (b"connection", b"Upgrade"), (b"upgrade", agreed)]))
        machine = reply.response.extensions["network_stream"]
        ways = {asyncio.create_task(_outward(reader, machine)), asyncio.create_task(_inward(machine, writer))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await machine.aclose()


def tunnels_of(door: Door) -> type[Tunnel]:
    """The protocol that takes connections over for this door."""
    return type("DoorTunnel", (Tunnel,), {"door": door})


async def _outward(reader: asyncio.StreamReader, machine: Any) -> None:
    while chunk := await reader.read(CHUNK):
        await machine.write(chunk)


async def _inward(machine: Any, writer: asyncio.StreamWriter) -> None:
    while chunk := await machine.read(CHUNK):
        writer.write(chunk)
        await writer.drain()


def _parsed(head: bytes) -> tuple[str, bytes, Headers]:
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, _ = first.split(b" ", 2)
    pairs = (line.partition(b":") for line in lines)
    return method.decode("ascii"), target, [(name.strip().lower(), value.strip()) for name, _, value in pairs]


def _head(status: int, passed: Headers) -> bytes:
    ending = [] if status == 101 else [(b"connection", b"close")]
    lines = [f"HTTP/1.1 {status} {httpx.codes.get_reason_phrase(status)}".encode()]
    lines += [name + b": " + value for name, value in (*passed, *ending)]
    return b"\r\n".join([*lines, b"", b""])
