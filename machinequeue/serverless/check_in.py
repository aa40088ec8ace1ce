"""A serverless machine says that its server answers: until then no request is sent to it."""

import contextlib
import os
import socket
import threading
import time

from django.db import connections

from machinequeue.records import serverless
from machinequeue.serverless.__main__ import address
from machinequeue.telemetry import emit

NAME = "MACHINEQUEUE_SERVERLESS"
LOOK_SECONDS = 0.1
LONGEST_SECONDS = 600.0
RETRY_SECONDS = 2.0


def check_in_soon() -> threading.Thread:
    """Wait in the background until this machine's port accepts, and write it down."""
    thread = threading.Thread(target=_check_in, name="machinequeue-check-in", daemon=True)
    thread.start()
    return thread


def _check_in() -> None:
    clock, deadline = threading.Event(), time.monotonic() + LONGEST_SECONDS
    while not _accepts():
        if time.monotonic() > deadline:
            return  # the dispatcher says so, and tries another machine
        clock.wait(LOOK_SECONDS)
    while not _written() and time.monotonic() < deadline:
        clock.wait(RETRY_SECONDS)


def _accepts() -> bool:
    host, port = address(os.environ)
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1" if host == "::" else host, int(port)), 1):
        return True
    return False


def _written() -> bool:
    name = os.environ.get(NAME, "")
    own = {"fly_id": os.environ.get("FLY_MACHINE_ID", ""), "region": os.environ.get("FLY_REGION", "")}
    try:
        wanted = serverless.checked_in(name, **own)
    except Exception as error:
        # The database may be away for a while; nothing here is worth a server.
        emit("serverless.unreachable", error=f"{type(error).__name__}: {error}".strip())
        return False
    finally:
        connections.close_all()
    emit("serverless.checked_in", machine=name, wanted=wanted)
    return True
