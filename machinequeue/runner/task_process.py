"""A task process: execute one run and tell the supervisor. The only place where user code runs.

Receivers of Django's task signals and `backoff` are user code too, so they run here; `task_finished` is sent after
the supervisor has recorded the outcome.
"""

import asyncio
import inspect
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from django.core.management import CommandError
from django.db import close_old_connections, connections
from django.utils.module_loading import import_string

from machinequeue.compat import Task, TaskResultStatus, task_backends, task_signals
from machinequeue.errors import CommandFailed, TaskCancelled, TaskInterruption, TaskNotImportable, TaskTimeout
from machinequeue.lifecycle import AttemptStatus
from machinequeue.payload import NotStorable, normalize, scrub
from machinequeue.records.claims import Claim
from machinequeue.runner import processes
from machinequeue.runner.channel import Channel, Closed
from machinequeue.runner.persist import persist

TIMEOUT_SIGNAL = signal.SIGUSR1
CANCEL_SIGNAL = signal.SIGUSR2
STOP_SIGNAL = signal.SIGTERM

_INTERRUPTIONS: dict[int, Callable[[], TaskInterruption]] = {
    TIMEOUT_SIGNAL: lambda: TaskTimeout("the run is over its timeout"),
    CANCEL_SIGNAL: lambda: TaskCancelled("the run was asked to stop"),
    STOP_SIGNAL: lambda: TaskInterruption("the machine is being stopped"),
}

_TIMES = ("run_after", "enqueued_at", "started_at", "last_attempted_at")


def main(end: int, output: int, path: str, *, shared: bool) -> None:
    """Execute the claims that come over the channel `end` until it is closed. Never returns.

    One claim only, unless the process is `shared`. `path` is the task that the first will likely be.
    """
    code = 1
    try:
        _settle_in(output)
        if not shared:
            # What it starts stays below it, so that its strays are told from those of the run after it. Where runs
            # share a process, the template adopts instead: an orphan is a stray, a child may be wanted by the next.
            processes.adopt_orphans()
        _warm_up(path)
        channel = Channel(socket.socket(fileno=end))
        while True:
            _execute(channel, channel.receive())
            close_old_connections()
            processes.forget_peak()
    except Closed:
        code = 0  # the supervisor needs this process no more
    except BaseException:
        # Nothing may run above the fork.
        traceback.print_exc()
    finally:
        with suppress(Exception):
            connections.close_all()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _settle_in(output: int) -> None:
    with suppress(OSError):
        os.setpgid(0, 0)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as score:
        score.write("1000")  # the first to be killed when memory is short


def _warm_up(path: str) -> None:
    """Touch now what the run will touch: memory shared by a fork is copied at its first use."""
    with suppress(Exception, SystemExit):
        task = import_string(path)
        backend: Any = task.get_backend()
        backend.restore(path, task.queue_name, task.priority, None)
        inspect.iscoroutinefunction(task.func)


# Claims travel as JSON ----------------------------------------------------------------------------------------------


def pack(claim: Claim, worker_id: str) -> dict[str, Any]:
    """A claim as a message."""
    fields = {name: getattr(claim, name) for name in Claim.__dataclass_fields__}
    times = {name: fields[name].isoformat() if fields[name] else None for name in _TIMES}
    return {**fields, **times, "run_id": str(claim.run_id), "worker_id": worker_id, "claimed": time.monotonic()}


def unpack(message: dict[str, Any]) -> Claim:
    """A message as a claim."""
    fields = {name: message[name] for name in Claim.__dataclass_fields__}
    times = {name: datetime.fromisoformat(fields[name]) if fields[name] else None for name in _TIMES}
    return Claim(**{**fields, **times, "run_id": UUID(fields["run_id"])})


# Execution ----------------------------------------------------------------------------------------------------------


class Voice:
    """What a task says to the supervisor: whole messages, whichever thread says them and whatever interrupts it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._speaking = False
        self._held_back: int | None = None

    def send(self, message: dict[str, Any]) -> None:
        """Raises Closed, and the interruption that came meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            with self._lock:
                self._channel.send(message)
            return
        self._speaking = True
        try:
            with self._lock:
                self._channel.send(message)
        finally:
            self._speaking = False
        number, self._held_back = self._held_back, None
        if number is not None:
            raise _INTERRUPTIONS[number]()  # noqa: RSE102 - a call that makes one

    def interrupt(self, number: int, frame: Any) -> None:
        """Handle a signal in the main thread."""
        if self._speaking:  # half a message would be the last that the supervisor understands
            self._held_back = number
        else:
            raise _INTERRUPTIONS[number]()  # noqa: RSE102 - the same


def _execute(channel: Channel, message: dict[str, Any]) -> None:
    claim, worker_id = unpack(message), message["worker_id"]
    begin = time.monotonic()
    stages = {"start": begin - message["claimed"]}
    children_peak = _children_peak()
    try:
        task = _imported(claim.task)
    except BaseException as error:
        # An import may raise anything, SystemExit too.
        channel.send({"outcome": _not_importable(claim, error), "imported": False, "stages": stages})
        channel.receive()
        return
    backend: Any = task_backends[claim.backend]
    voice = Voice(channel)
    context = persist(lambda: backend.context_of(claim, worker_id, voice.send))
    result = context.task_result
    task_signals.task_started.send_robust(type(backend), task_result=result)
    called = time.monotonic()
    outcome = _call(task, context, claim, voice)
    stages |= {"prepare": called - begin, "call": time.monotonic() - called}
    sys.stdout.flush()
    sys.stderr.flush()
    voice.send({"outcome": outcome, "stages": stages, **_memory(children_peak)})
    recorded = channel.receive()["recorded"]
    if recorded in ("SUCCESSFUL", "FAILED", "CANCELLED"):
        object.__setattr__(result, "run_status", recorded)
        object.__setattr__(result, "status", TaskResultStatus("SUCCESSFUL" if recorded == "SUCCESSFUL" else "FAILED"))
        object.__setattr__(result, "_return_value", outcome.get("value"))
        task_signals.task_finished.send_robust(type(backend), task_result=result)


def _imported(path: str) -> Any:
    task = import_string(path)
    if not isinstance(task, Task):
        raise TaskNotImportable(f"{path} is a {type(task).__name__}, not a task.")
    return task


def _children_peak() -> int:
    return processes.peak_mb(resource.getrusage(resource.RUSAGE_CHILDREN))


def _memory(children_before: int) -> dict[str, int]:
    """The largest that this process was in the run, or one of its children that ended in it; and what it holds now."""
    own, children = processes.peak_mb(resource.getrusage(resource.RUSAGE_SELF)), _children_peak()
    peak = max(own, children) if children > children_before else own  # else an earlier run's child was larger
    return {"peak_memory_mb": peak, "resident_mb": processes.resident_mb()}


def _not_importable(claim: Claim, error: BaseException) -> dict[str, Any]:
    return {
        "status": AttemptStatus.FAILED,
        "error": "machinequeue.errors.TaskNotImportable",
        "traceback": scrub("".join(traceback.format_exception(error))),
        "sentence": scrub(
            f"task {claim.task} cannot be imported on the machine: {type(error).__name__}: {error}", 2000
        ),
        "remedy": "Deploy an image that has the task, or the packages that it imports, and retry the run.",
        "retry": True,
        "delay": None,
    }


def _call(task: Any, context: Any, claim: Claim, voice: Voice) -> dict[str, Any]:
    """Call the function; its outcome as a message. What comes from outside comes as a TaskInterruption."""
    args = [context, *claim.args] if task.takes_context else claim.args
    try:
        if inspect.iscoroutinefunction(task.func):
            value = asyncio.run(_interruptible(task.func, args, claim.kwargs))
        else:
            for number in _INTERRUPTIONS:
                signal.signal(number, voice.interrupt)
            value = task.func(*args, **claim.kwargs)
        return {"value": normalize(value, "the return value")}
    except BaseException as error:
        # SystemExit and KeyboardInterrupt fail a run; they do not end a machine.
        _ignore_signals()
        return _failure(task, context, error)
    finally:
        _ignore_signals()


def _ignore_signals() -> None:
    for number in _INTERRUPTIONS:
        signal.signal(number, signal.SIG_IGN)


async def _interruptible(func: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    reasons: list[int] = []

    def interrupt(number: int) -> None:
        reasons.append(number)
        if this is not None:
            this.cancel()

    for number in _INTERRUPTIONS:
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await func(*args, **kwargs)
    except asyncio.CancelledError:
        if reasons:
            raise _INTERRUPTIONS[reasons[0]]() from None  # noqa: RSE102 - a call that makes one
        raise


_STATUSES: dict[type[BaseException], AttemptStatus] = {
    TaskTimeout: AttemptStatus.TIMED_OUT,
    TaskCancelled: AttemptStatus.CANCELLED,
    TaskInterruption: AttemptStatus.INTERRUPTED,
}


def _failure(task: Any, context: Any, error: BaseException) -> dict[str, Any]:
    kind = type(error)
    path = "builtins.TypeError" if kind is NotStorable else f"{kind.__module__}.{kind.__qualname__}"
    message: dict[str, Any] = {
        "status": _STATUSES.get(kind, AttemptStatus.FAILED),
        "error": path[:255],
        "traceback": scrub("".join(traceback.format_exception(error))),
        "sentence": scrub(f"{kind.__name__}: {error}" if str(error) else kind.__name__, 2000),
        "remedy": "",
        "retry": isinstance(error, getattr(task, "retry_on", Exception)),
        "delay": None,
        **_exit(error),
    }
    backoff = getattr(task, "backoff", None)
    own = message["status"] in (AttemptStatus.FAILED, AttemptStatus.TIMED_OUT)
    if own and message["retry"] and backoff is not None:
        message |= _asked_delay(backoff, error, context)
    return message


def _exit(error: BaseException) -> dict[str, int | None]:
    """The exit code, and the signal, that an error tells of: of a management command, or of a task that exits."""
    match error:
        case SystemExit(code=int() as code) | CommandError(returncode=int() as code):
            return {"exit_code": code}
        case CommandFailed():
            return {"exit_code": error.exit_code, "signal": error.signal}
    return {}


def _asked_delay(backoff: Callable[..., Any], error: BaseException, context: Any) -> dict[str, Any]:
    try:
        delay = backoff(error, context.task_result)
        return {"retry": False} if delay is None else {"delay": float(delay)}
    except Exception:
        # The task's own error is what counts; the default backoff serves.
        traceback.print_exc()
        return {}
