"""Servers that end when nobody asks: gunicorn, uvicorn and granian as real processes, and the clock that they share."""

import base64
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from machinequeue.serverless.idle import Clock, idle_shutdown
from tests.ports import free_port
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(400)
SPAN = 4.0
DEADLINE = 60
SERVERS = {
    "gunicorn": ["gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2", "--threads", "2", "{app}:wsgi"],
    "gunicorn-preload": ["gunicorn", "--preload", "--bind", "127.0.0.1:{port}", "--workers", "2", "{app}:wsgi"],
    "uvicorn": ["uvicorn", "--port", "{port}", "{app}:asgi"],
    "uvicorn-workers": ["uvicorn", "--workers", "2", "--port", "{port}", "{app}:asgi"],
    "granian-wsgi": ["granian", "--interface", "wsgi", "--workers", "2", "--port", "{port}", "{app}:wsgi"],
    "granian-asgi": ["granian", "--interface", "asgi", "--port", "{port}", "{app}:asgi"],
}


class Server:
    """One server process with its workers; `gate` lets its streams end."""

    def __init__(self, name: str, folder: Path) -> None:
        self.port = free_port()
        self.gate, self.log = folder / "gate", folder / "log"
        words = [word.format(port=self.port, app="tests.serverless.idle_app") for word in SERVERS[name]]
        # A folder of its own for temporary files: what is left there is seen.
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        own = {"IDLE": str(SPAN), "GATE": str(self.gate), "TMPDIR": str(self.temporary)}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.url = f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def connect(self) -> socket.socket:
        """A connection, as soon as it listens."""

        def tried() -> socket.socket | None:
            assert self.process.poll() is None, self.said()
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)
            except OSError:
                return None

        made = until(tried, DEADLINE, self.said)
        assert made is not None
        return made

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    started = Server(request.param, tmp_path)
    yield started
    started.end()


def read_until(connection: socket.socket, text: bytes) -> bytes:
    got = b""
    while text not in got:
        more = connection.recv(4096)
        assert more, got
        got += more
    return got


def longer_than_the_span() -> None:
    end = time.monotonic() + SPAN + 1
    until(lambda: time.monotonic() > end, SPAN + DEADLINE)


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_a_server_ends_when_idle_and_never_during_a_stream(server: Server) -> None:
    with server.connect() as stream:
        stream.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(stream, b"first")
        family = psutil.Process(server.process.pid).children(recursive=True)
        longer_than_the_span()
        assert server.process.poll() is None, server.said()
        assert httpx.get(server.url, timeout=DEADLINE).status_code == 200
        server.gate.touch()
        read_until(stream, b"last")
    # Nothing tells it to end but its own clock.
    until(lambda: server.process.poll() is not None, DEADLINE, server.said)
    assert server.process.returncode == 0, server.said()
    assert not psutil.wait_procs(family, timeout=DEADLINE)[1]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["granian-asgi"], indirect=True)
def test_an_open_websocket_keeps_a_server(server: Server) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    with server.connect() as opened:
        opened.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key.encode() + b"\r\n\r\n"
        )
        assert b"101" in read_until(opened, b"\r\n\r\n")
        longer_than_the_span()
        assert server.process.poll() is None, server.said()
        opened.sendall(b"\x88\x80\0\0\0\0")  # a close frame, masked with zeros
        while opened.recv(4096):
            pass
    until(lambda: server.process.poll() is not None, DEADLINE, server.said)


def test_what_one_worker_does_all_workers_see(tmp_path: Path) -> None:
    mine = Clock(tmp_path / "server")
    other = Clock(tmp_path / "server")
    assert mine.is_first()
    assert not other.is_first()
    other.begin()
    assert mine.idle_seconds() == 0.0
    other.begin()
    other.end()
    assert mine.idle_seconds() == 0.0
    other.end()
    until(lambda: mine.idle_seconds() > 0)
    mine.close()
    assert other.is_first()
    other.close()
    assert list(tmp_path.iterdir()) == []


def _hold(folder: Path, ready: Any) -> None:
    Clock(folder).begin()
    ready.set()
    signal.pause()


def test_a_worker_that_was_killed_in_a_request_keeps_nobody_awake(tmp_path: Path) -> None:
    mine = Clock(tmp_path / "server")
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=_hold, args=(tmp_path / "server", ready))
    worker.start()
    try:
        assert ready.wait(DEADLINE)
        assert mine.idle_seconds() == 0.0
    finally:
        worker.kill()
        worker.join()
        worker.close()
    until(lambda: mine.idle_seconds() > 0)
    assert mine.is_first()
    mine.close()


def test_without_a_span_the_application_is_left_as_it_is() -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        return []

    assert idle_shutdown(application) is application
    assert idle_shutdown(application, 0) is application


def test_a_folder_that_somebody_cleared_away_ends_no_server(tmp_path: Path) -> None:
    mine = Clock(tmp_path / "server")
    shutil.rmtree(tmp_path / "server")
    assert not mine.is_first()
    mine.begin()
    mine.end()
    mine.close()
