"""What machines execute in the tests: every way in which a task can behave and misbehave."""

import asyncio
import contextlib
import ctypes
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from machinequeue import TaskInterruption, TaskTimeout, machine_task


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


def _at_once(error: BaseException, result: Any) -> float:
    return 0.0


@machine_task(timeout=0.5, max_attempts=2, retry_on=[TaskTimeout], backoff=_at_once)
def slow_at_first(gate: str) -> str:
    if Path(gate).exists():
        return "in time"
    Path(gate).touch()
    _forever()
    return "never"


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


# What weighs, hides, resumes and floods -----------------------------------------------------------------------------


@machine_task
def hungry(mb: int) -> int:
    """Takes so much memory, a MB at a time, and gives it back."""
    clock, taken = threading.Event(), []
    for _ in range(mb):
        taken.append(bytearray(b"x" * (1 << 20)))
        clock.wait(0.001)
    return len(taken)


@machine_task
def hungry_child(mb: int) -> None:
    """Has a child take the memory, and fails when the child is killed."""
    subprocess.run([sys.executable, "-c", _TAKE, str(mb)], check=True)


@machine_task
def hungry_family(mb: int, children: int) -> None:
    """Several children hold so much memory at once, until the task has seen them hold it for a while."""
    family = [subprocess.Popen([sys.executable, "-c", _HOLD, str(mb)], stdout=subprocess.PIPE) for _ in range(children)]
    for child in family:
        child.stdout.read(1)  # type: ignore[union-attr]
    threading.Event().wait(2.5)
    for child in family:
        child.kill()
        child.communicate()


@machine_task
def starved_in_a_group(group: str, mb: int, whose: str) -> None:
    """Takes more memory than the kernel allows to a control group: "its own" process, or "a child's"."""
    enter = f"open({group + '/cgroup.procs'!r}, 'w').write('0')"
    if whose == "a child's":
        subprocess.run([sys.executable, "-c", f"{enter}; {_TAKE}", str(mb)], check=True)
    (Path(group) / "cgroup.procs").write_text("0")
    hungry.func(mb)


_TAKE = "import sys; taken = [bytearray(b'x' * (1 << 20)) for _ in range(int(sys.argv[1]))]"
_HOLD = f"{_TAKE}; print('.', end='', flush=True); import signal; signal.pause()"


def _escape(folder: str) -> None:
    """Start a process that nobody finds by parent, session or group; it writes its pid and sleeps."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            (Path(folder) / f"{os.getpid()}.escaped").touch()
            _forever()
        os._exit(0)
    os.wait()
    clock = threading.Event()
    while not list(Path(folder).glob("*.escaped")):
        clock.wait(0.01)


@machine_task(timeout=1)
def escapes_and_hangs(folder: str) -> None:
    _escape(folder)
    _forever()


@machine_task
def escapes_and_dies(folder: str) -> None:
    _escape(folder)
    os.kill(os.getpid(), signal.SIGKILL)


@machine_task
def escapes_and_returns(folder: str) -> str:
    _escape(folder)
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (Path(folder) / f"{child.pid}.child").touch()
    return "fine"


@machine_task(timeout=1)
def flood() -> None:
    """Prints without end, faster than anybody reads."""
    piece = b"x" * 65536
    while True:
        os.write(1, piece)


@machine_task(takes_context=True)
def counts_on(context: Any, gate: str) -> list[int]:
    """Counts up to three, a checkpoint each; waits at the gate before the second. Returns where it began and ended."""
    begin = context.checkpoint["count"] if context.checkpoint else 0
    for count in range(begin, 3):
        if count == 1:
            wait_for.func(gate)
        context.save_checkpoint({"count": count + 1})
    return [begin, 3]


@machine_task(takes_context=True)
def saves_when_interrupted(context: Any, gate: str) -> Any:
    """Saves only in its last moment."""
    if context.checkpoint is not None:
        return context.checkpoint
    try:
        wait_for.func(gate)
    except TaskInterruption as error:
        context.save_checkpoint(type(error).__name__)
        raise


@machine_task(takes_context=True)
async def saves_when_interrupted_async(context: Any, gate: str) -> Any:
    """The same, as a coroutine: what reaches it is the cancellation of its own loop's task."""
    if context.checkpoint is not None:
        return context.checkpoint
    (Path(gate).parent / f"{Path(gate).name}.{os.getpid()}.started").touch()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        context.save_checkpoint("cancelled")
        raise


@machine_task(takes_context=True, max_attempts=2, backoff=_now_and_then)
def fails_after_saving(context: Any) -> Any:
    if context.checkpoint is None:
        context.save_checkpoint([1, "é", None])
        raise ValueError("the first attempt")
    return context.checkpoint


@machine_task(takes_context=True)
def saves_badly(context: Any, size: int) -> None:
    context.save_checkpoint("x" * size if size else {1, 2})


@machine_task
def finishes_when_interrupted(gate: str) -> str:
    try:
        wait_for.func(gate)
    except TaskInterruption:
        return "finished all the same"
    return "was not interrupted"


@machine_task
def deaf(gate: str) -> None:
    """Does not mind being interrupted, and leaves a child in a session of its own."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (Path(gate).parent / f"{child.pid}.escaped").touch()
    while True:
        try:
            wait_for.func(gate)
        except TaskInterruption:
            continue
        return


@machine_task
def ledger(book: str, gate: str) -> str:
    """Writes down its process, waits at the gate, and writes that it got through."""
    with Path(book).open("a") as lines:
        lines.write(f"{os.getpid()} began\n")
    wait_for.func(gate)
    with Path(book).open("a") as lines:
        lines.write(f"{os.getpid()} ended\n")
    return "done"


@machine_task
def keeps_a_daemon(folder: str) -> str:
    """Starts a process that escapes, and finds it alive a little later."""
    mine = Path(folder) / str(os.getpid())
    mine.mkdir()
    _escape(str(mine))
    [mark] = mine.iterdir()
    (Path(folder) / mark.name).touch()
    threading.Event().wait(0.05)
    os.kill(int(mark.name.partition(".")[0]), 0)
    return "it lived"


@machine_task
def wait_and_fail(gate: str) -> None:
    wait_for.func(gate)
    raise ValueError("after the gate")


@machine_task
def garbles() -> None:
    """Writes what nobody understands into every socket that it has open."""
    for descriptor in range(3, 50):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"no message\n")
    _forever()
