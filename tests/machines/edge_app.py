"""The app that runs in the machines behind an edge. It needs the standard library only, and is copied into an image.

A request for `/…?fly-replay=VALUE` is answered with that order, unless it was replayed or fell back already.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import select
import signal
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ME = os.environ["FLY_MACHINE_ID"]
SIGNS: defaultdict[str, threading.Event] = defaultdict(threading.Event)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        done = "fly-replay-src" in self.headers or "fly-replay-failed" in self.headers
        if "fly-replay" in query and (not done or "always" in query):
            self.rest_of_body()
            SIGNS["ordered"].set()
            self.plain(b"an order", {"fly-replay": query["fly-replay"], "set-cookie": "from-order=1"})
        elif "json" in query and not done:
            self.rest_of_body()
            self.plain(query["json"].encode(), {"content-type": "application/vnd.fly.replay+json"})
        else:
            name = parts.path.strip("/").split("/")[0]
            getattr(self, f"do_{name}", self.who)(query)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def who(self, _query: dict[str, str]) -> None:
        """Everything about this request."""
        body = self.rest_of_body()
        told: dict[str, Any] = {
            "machine": ME,
            "region": os.environ["FLY_REGION"],
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): ", ".join(self.headers.get_all(name) or ()) for name in self.headers},
            "size": len(body),
            "digest": hashlib.sha256(body).hexdigest(),
            "client_port": self.client_address[1],
        }
        self.plain(json.dumps(told).encode(), {"content-type": "application/json", "server-timing": "db"})

    def do_wait(self, query: dict[str, str]) -> None:
        """Answer when the sign is given; give `gone-SIGN` when the client leaves before."""
        sign = SIGNS[query["sign"]]
        SIGNS[f"arrived-{query['sign']}"].set()
        while not sign.wait(0.01):
            if select.select([self.connection], [], [], 0)[0]:
                SIGNS[f"gone-{query['sign']}"].set()
                self.close_connection = True
                return
        self.plain(ME.encode())

    def do_give(self, query: dict[str, str]) -> None:
        SIGNS[query["sign"]].set()
        self.plain(b"given")

    def do_given(self, query: dict[str, str]) -> None:
        self.plain(b"yes" if SIGNS[query["sign"]].is_set() else b"no")

    def do_stream(self, query: dict[str, str]) -> None:
        """One event, and another when the sign is given."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.chunk(b"data: first\n\n")
        SIGNS[query["sign"]].wait(20)
        self.chunk(b"data: last\n\n")
        self.chunk(b"")

    def do_download(self, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("content-length", str(int(query["mb"]) * 1_000_000))
        self.end_headers()
        for _ in range(int(query["mb"])):
            self.wfile.write(b"x" * 1_000_000)

    def do_breakoff(self, _query: dict[str, str]) -> None:
        """Promise more than is sent."""
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        self.wfile.write(b"begun")
        self.wfile.flush()
        self.close_connection = True

    def do_vanish(self, _query: dict[str, str]) -> None:
        """End the whole machine before any answer."""
        os._exit(3)

    def do_upload(self, query: dict[str, str]) -> None:
        """Give the sign when the first bytes are here, then take the rest."""
        first = self.body_chunk()
        SIGNS[query["sign"]].set()
        self.plain(str(len(first) + len(self.rest_of_body())).encode())

    def do_ws(self, _query: dict[str, str]) -> None:
        """Agree to a WebSocket, say who this is, and echo bytes."""
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "Upgrade")
        self.send_header(
            "sec-websocket-accept",
            base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest()).decode(),
        )
        self.end_headers()
        self.wfile.write(ME.encode())
        self.wfile.flush()
        while data := self.connection.recv(65_536):
            self.connection.sendall(data)
        SIGNS["ws-ended"].set()
        self.close_connection = True

    def plain(self, body: bytes, fields: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"content-length": str(len(body)), "x-machine": ME, **(fields or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def body_chunk(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def rest_of_body(self) -> bytes:
        body = b""
        while data := self.body_chunk():
            body += data
            if self.headers.get("transfer-encoding") != "chunked":
                break
        return body

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 200


def main() -> None:
    """Serve, once a file named by $WAIT_FOR exists."""
    gate = os.environ.get("WAIT_FOR")
    while gate and not os.path.exists(gate):  # noqa: PTH110  # as light as can be
        threading.Event().wait(0.01)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a stop with this signal takes all the time it is given
    server = Server((os.environ["FLY_PRIVATE_IP"], int(os.environ.get("PORT", "8000"))), Handler)
    print("up", flush=True)  # from here on no connection is refused
    server.serve_forever()


if __name__ == "__main__":
    main()
