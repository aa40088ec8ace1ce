"""Tasks that write down what they do, so that who looks from outside can tell what was executed.

The ledger is a file named by WORKSHOP_LEDGER, a JSON object a line: `what` ("enqueued", "start" or "end"), `run`,
`pid`, `at` (seconds since 1970), of an execution `epoch`, of an enqueue `ends` (the statuses that are a right end).
A line is one write with O_APPEND, so that lines of many processes do not mix and a kill leaves none behind in half.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from django.db import transaction

from machinequeue import machine_task

SUCCESS = ("SUCCESSFUL",)


def note(what: str, run: str, *, to: str = "", **more: Any) -> None:
    """Append a line to the ledger (of this process, unless `to` names another)."""
    line = json.dumps({"what": what, "run": run, "pid": os.getpid(), "at": time.time(), **more}) + "\n"
    descriptor = os.open(to or os.environ["WORKSHOP_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def _begin(context: Any) -> str:
    result = context.task_result
    note("start", result.id, epoch=context.attempt)
    return f"{result.id}/{context.attempt}"


def _end(context: Any) -> str:
    """The value that only this attempt returns."""
    result = context.task_result
    note("end", result.id, epoch=context.attempt)
    return f"{result.id}/{context.attempt}"


def _soon(error: BaseException, result: Any) -> float:
    return 0.05


# A task process that is killed counts against the task, whose attempts must then cover the kills of a test.
@machine_task(takes_context=True, max_attempts=10, backoff=_soon)
def job(context: Any, seconds: float = 0.0, gate: str = "") -> str:
    """Take so long, or until the file `gate` is there."""
    _begin(context)
    clock = threading.Event()
    clock.wait(seconds)
    while gate and not Path(gate).exists():
        clock.wait(0.02)
    return _end(context)


@machine_task(takes_context=True)
def raising(context: Any) -> None:
    _begin(context)
    raise ValueError("as it was told")


@machine_task(takes_context=True, max_attempts=20, backoff=_soon)
def retrying(context: Any, times: int) -> str:
    """Raises in its first attempts."""
    _begin(context)
    if context.attempt <= times:
        raise ConnectionError(f"attempt {context.attempt}")
    return _end(context)


@machine_task(takes_context=True, max_attempts=10, backoff=_soon)
def allocating(context: Any, megabytes: int, seconds: float = 0.0) -> str:
    """Takes memory, all of which it writes to, and keeps it: the emulator looks four times a second."""
    _begin(context)
    block = bytearray(b"x") * (megabytes << 20)
    threading.Event().wait(seconds)
    del block
    return _end(context)


@machine_task(takes_context=True, max_attempts=10, backoff=_soon)
def parent(context: Any, children: int) -> str:
    """Enqueues more jobs, all or none, and notes what was committed."""
    _begin(context)
    with transaction.atomic():
        made = [job.enqueue().id for _ in range(children)]
    for run in made:
        note("enqueued", run, ends=SUCCESS)
    return _end(context)
