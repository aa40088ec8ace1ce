"""Applications whose server ends when nobody asks: a WSGI and an ASGI one, without Django."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings

settings.configure(USE_TZ=True, MACHINEQUEUE={"IDLE_SHUTDOWN": float(os.environ["IDLE"])})

from machinequeue.serverless import idle_shutdown  # noqa: E402

GATE = Path(os.environ["GATE"])


def _stream() -> Iterator[bytes]:
    """One line, and another when the gate opens."""
    yield b"first\n"
    while not GATE.exists():
        time.sleep(0.02)
    yield b"last\n"


def _wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("content-type", "text/plain")])
    return _stream() if environ["PATH_INFO"] == "/stream" else [str(os.getpid()).encode()]


async def _asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
        return
    if scope["type"] != "http":
        raise RuntimeError(f"{scope['type']} is not served")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
        while not GATE.exists():  # noqa: ASYNC110, ASYNC240 - the gate is a file that another process makes
            await asyncio.sleep(0.02)
        await send({"type": "http.response.body", "body": b"last\n"})
    else:
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


wsgi = idle_shutdown(_wsgi)
asgi = idle_shutdown(_asgi)
