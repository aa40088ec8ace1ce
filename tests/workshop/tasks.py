"""What machines execute in the tests: every way in which a task can behave and misbehave."""

import asyncio
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from machinequeue import machine_task


def _forever() -> None:
    threading.Event().wait()


def _now_and_then(value: Any, result: Any) -> float:
    return 0.05


@machine_task
def add(a: int, b: int = 0) -> int:
    return a + b


@machine_task
def anything(value: Any = None, *more: Any, **named: Any) -> Any:
    return [value, list(more), named]


@machine_task(queue_name="reports", memory_mb=4096, timeout=60, max_attempts=3)
def report(order_id: int) -> int:
    return order_id


@machine_task
def whoami() -> dict[str, Any]:
    """Where this runs."""
    return {"pid": os.getpid(), "machine": os.environ.get("FLY_MACHINE_ID"), "parent": os.getppid()}


@machine_task
def modules() -> list[str]:
    return sorted(sys.modules)


@machine_task
def environment() -> dict[str, str]:
    return dict(os.environ)


@machine_task
def boom(text: str = "no paper left") -> None:
    print("about to fail")
    raise ValueError(text)


@machine_task(max_attempts=3, backoff=_now_and_then)
def flaky(marks: str) -> int:
    """Fails twice; the marks are files that tell attempts apart."""
    mine = len(list(Path(marks).iterdir()))
    (Path(marks) / str(mine)).touch()
    if mine < 2:
        raise ConnectionError(f"try {mine}")
    return mine


@machine_task(max_attempts=5, backoff=lambda error, result: None)
def hopeless() -> None:
    raise ValueError("its backoff says that nothing helps")


@machine_task(max_attempts=5, retry_on=[ConnectionError])
def picky() -> None:
    raise KeyError("not worth a retry")


@machine_task(timeout=0.5)
def too_slow() -> None:
    _forever()


@machine_task(timeout=0.5)
async def too_slow_async() -> None:
    await asyncio.Event().wait()


@machine_task(timeout=0.5)
def stubborn(pids: str) -> None:
    """Ignores its timeout, and has a child that would outlive it."""
    os.fork()
    while True:
        try:
            (Path(pids) / str(os.getpid())).touch()
            _forever()
        except BaseException:
            continue


@machine_task
def wait_for(gate: str, said: str = "") -> str:
    """Runs until the file `gate` is there, or until it is interrupted."""
    (Path(gate).parent / f"{Path(gate).name}.{os.getpid()}.started").touch()
    if said:
        print(said, flush=True)
    clock = threading.Event()
    while not Path(gate).exists():
        clock.wait(0.02)
    return "the gate is open"


@machine_task(queue_name="alone")
def alone() -> str:
    return os.environ["MACHINEQUEUE_MACHINE"]


@machine_task(queue_name="warm")
def warm() -> dict[str, Any]:
    return {"pid": os.getpid(), "machine": os.environ["MACHINEQUEUE_MACHINE"]}


@machine_task
def leave(code: int) -> None:
    sys.exit(code)


@machine_task
def leave_at_once(code: int) -> None:
    print("last words", flush=True)
    os._exit(code)


@machine_task
def segfault() -> None:
    ctypes.string_at(0)


@machine_task
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@machine_task
def unstorable() -> Any:
    return {1, 2, 3}


@machine_task
async def doubled(number: int) -> int:
    await asyncio.sleep(0)
    return number * 2


@machine_task(takes_context=True)
def counting(context: Any, gate: str) -> dict[str, Any]:
    """Says its progress, waits for the gate, and returns what its context knows."""
    context.progress(1, 3, "one of three")
    clock = threading.Event()
    while not Path(gate).exists():
        clock.wait(0.02)
    context.progress(3, 3, "all")
    result = context.task_result
    return {"id": result.id, "attempt": context.attempt, "status": str(result.status), "args": result.args}


@machine_task
def print_much(lines: int) -> int:
    for number in range(lines):
        print(f"line {number} {'x' * 1000}")
    return lines


@machine_task
def enqueue_another(a: int, b: int) -> str:
    return add.enqueue(a, b).id


@machine_task
def wait_for_another() -> int:
    value: int = add.enqueue(1, 2).wait(5).return_value
    return value
