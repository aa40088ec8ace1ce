"""Management commands as tasks: `command_task("clearsessions")`.

On its machine the command runs in a process of its own below the task's, as `manage.py clearsessions` would: its exit
code, a crash or a kill is the command's alone. What it writes goes to the run's output as everything else does, and
byte for byte, stdout apart from stderr, to where `mq_exec` follows it.
"""

import multiprocessing
import os
import pickle
import selectors
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from django.apps import apps
from django.core.management import CommandError, call_command, get_commands
from django.db import DatabaseError, connections

from machinequeue import conf
from machinequeue.backend import MachineTask, MachineTaskContext, MachineTaskResult, machine_task
from machinequeue.backend.task import Call
from machinequeue.compat import InvalidTask, Task
from machinequeue.errors import CommandFailed, InvalidArguments
from machinequeue.records import migrations, streams
from machinequeue.records.streams import Piece
from machinequeue.runner.persist import persist

STORE_SECONDS = 0.25
"""Output of a command is stored at most this often."""
PIECE_BYTES = 1 << 18
LAST_LOOKS = 8
"""After the command's end, at its pipes: they hold no more than that, but somebody whom it left behind may write on."""
INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True, kw_only=True)
class CommandTask(MachineTask):
    """A management command as a task. `enqueue("--noinput", verbosity=2)` takes what `call_command` takes."""

    command: str = ""

    @property
    def module_path(self) -> str:
        """Where machines find the task: the module that made it, and the name that it was assigned to there."""
        return f"{self.func.__module__}.{self._name() or self.command}"

    def _name(self) -> str:
        """The name that it was assigned to, as far as it was by now."""
        if self.func.__module__ == UNDECLARED:
            return self.command
        module = vars(sys.modules[self.func.__module__])
        return next((name for name, each in module.items() if isinstance(each, Task) and each.func is self.func), "")

    def enqueue(self, *args: Any, **kwargs: Any) -> MachineTaskResult:
        """Write the run. Raises InvalidTask for a command that is not there, InvalidArguments."""
        self._check(args)
        return super().enqueue(*args, **kwargs)

    async def aenqueue(self, *args: Any, **kwargs: Any) -> MachineTaskResult:
        """`enqueue`, from async code."""
        self._check(args)
        return await super().aenqueue(*args, **kwargs)

    def enqueue_many(self, calls: Iterable[Call]) -> list[MachineTaskResult]:
        """Enqueue many calls, each an (args, kwargs) pair, all or none."""
        listed = list(calls)
        for args, _ in listed:
            self._check(args)
        return super().enqueue_many(listed)

    def _check(self, args: Iterable[Any]) -> None:
        _refuse_unknown(self.command)
        if not self._name():
            raise InvalidTask(
                f"command_task({self.command!r}) must be assigned to a name of module {self.func.__module__}, where "
                f"machines find it: {self.command} = command_task({self.command!r})"
            )
        for index, value in enumerate(args):
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise InvalidArguments(
                    f"{self.command}: args[{index}] is {value!r:.80}; words of a command line are text or numbers. "
                    "Options go by keyword, as call_command takes them."
                )


UNDECLARED = "machinequeue.contrib.manage"


def command_task(command: str, **options: Any) -> MachineTask:
    """A task that runs a management command on a machine of its own: `clear = command_task("clearsessions")`.

    Options are those of `@machine_task`, without `takes_context`; `isolation` is "machine" unless it says otherwise. It
    is to be assigned to a name of the calling module. Raises InvalidTask for an unknown command, TypeError.
    """
    if "takes_context" in options:
        raise TypeError("command_task() has no option 'takes_context': a command gets arguments, and no context.")
    if apps.apps_ready:  # else it is checked when it is enqueued
        _refuse_unknown(command)
    return _task(command, sys._getframe(1).f_globals["__name__"], options)


@cache
def undeclared(command: str, module: str) -> MachineTask:
    """The task of any command, with no options of its own. One each: looking tasks up must not make more of them."""
    return _task(command, module, {})


def sized(task: MachineTask, asked: dict[str, Any]) -> MachineTask:
    """The task with a machine of the size asked for, with as many CPUs as its memory needs if none were named.

    Raises InvalidTask, with a size that would do.
    """
    _refuse_unknown(getattr(task, "command", task.name))
    kind, memory = asked.get("cpu_kind") or "shared", asked.get("memory_mb")
    fitting = _fitting(kind, asked.get("cpus") or 1, memory) if memory else None
    if fitting is not None and asked.get("cpus") is None:
        asked = {**asked, "cpus": fitting[0], "memory_mb": memory}
    try:
        return task.using(**asked)
    except InvalidTask as error:
        if fitting is None or fitting == (asked.get("cpus"), memory):
            raise
        raise InvalidTask(f"{error} Fits: --cpu-kind {kind} --cpus {fitting[0]} --memory {fitting[1]}") from error


def _fitting(kind: str, cpus: int, memory: int) -> tuple[int, int] | None:
    """The smallest size that Fly sells with at least so many CPUs and so much memory."""
    counts, low, high = conf.GUESTS[kind]
    for count in counts:
        if count >= cpus and memory <= high * count:
            return count, max(low * count, -(-memory // conf.MEMORY_STEP) * conf.MEMORY_STEP)
    return None


def _task(command: str, module: str, options: dict[str, Any]) -> MachineTask:
    def run(context: MachineTaskContext, /, *argv: Any, **kwargs: Any) -> int:
        return _execute(context, command, argv, kwargs)

    run.__name__ = run.__qualname__ = command
    run.__module__ = module
    run.__doc__ = f"manage.py {command}"
    plain = machine_task(**{"isolation": "machine", **options, "takes_context": True})(_any_command)
    values = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    return CommandTask(**{**values, "func": run}, command=command)


def _any_command(context: MachineTaskContext, /, *argv: Any, **kwargs: Any) -> None:
    """The shape of all of them."""


def _refuse_unknown(command: str) -> None:
    known = get_commands()
    if command not in known:
        raise InvalidTask(
            f"There is no management command {command!r}.{conf.suggest(command, known)} "
            "Is the app that has it in INSTALLED_APPS?"
        )


# On the machine -----------------------------------------------------------------------------------------------------


def _execute(context: MachineTaskContext, command: str, argv: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Run the command; 0. Raises what it raised, CommandFailed for another exit code or a signal."""
    if not conf.in_machine():
        return _inline(command, argv, kwargs)
    connections.close_all()  # none may be shared by two processes
    child = _Child(command, lambda: call_command(command, *argv, **kwargs))
    recorder = _Recorder(uuid.UUID(context.task_result.id), context.attempt)
    try:
        child.wait(recorder)
    finally:
        recorder.finish()
    return child.verdict()


def _inline(command: str, argv: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """In a test that executes tasks in its own process and transaction."""
    try:
        call_command(command, *argv, **kwargs)
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
    return 0


class _Child:
    """The command's process, and the reading ends of what it writes."""

    def __init__(self, command: str, call: Callable[[], object]) -> None:
        self._command = command
        self._said = bytearray()
        self._wake, self._wakes = os.pipe()
        pipes = {name: os.pipe() for name in ("stdout", "stderr", "said")}
        self._reads = {name: ends[0] for name, ends in pipes.items()}
        writes = {name: ends[1] for name, ends in pipes.items()}
        sys.stdout.flush()
        sys.stderr.flush()
        # A fork, as of the task's own process: Django is set up, and no thread is there yet.
        self._process = multiprocessing.get_context("fork").Process(target=_command, args=(call, writes))
        self._process.start()
        for end in writes.values():
            os.close(end)

    def wait(self, recorder: "_Recorder") -> None:
        """Until it has ended and everything that it wrote is read. An interruption of the task is passed on."""
        pump = threading.Thread(target=self._pump, args=(recorder,), name="pump", daemon=True)
        pump.start()
        recorder.start()
        try:
            self._process.join()
        except BaseException:
            # As Ctrl-C would: what the command has to tidy up it may; the supervisor kills it when it takes too long.
            with suppress(ProcessLookupError):
                os.kill(cast(int, self._process.pid), signal.SIGINT)
            self._process.join()
            raise
        finally:
            os.write(self._wakes, b"!")
            pump.join()
            for end in (self._wake, self._wakes, *self._reads.values()):
                os.close(end)

    def _pump(self, recorder: "_Recorder") -> None:
        """Read all pipes to their end; once the process has ended, only what they hold: its children may live on."""
        with selectors.DefaultSelector() as selector:
            for name, end in self._reads.items():
                selector.register(end, selectors.EVENT_READ, name)
            selector.register(self._wake, selectors.EVENT_READ, "")
            ended, looks = False, LAST_LOOKS
            while len(selector.get_map()) > (0 if ended else 1) and looks:
                ready = selector.select(0 if ended else None)
                if not ready and ended:
                    return
                looks -= ended
                for key, _ in ready:
                    if not key.data:
                        ended = True
                        selector.unregister(key.fd)
                    elif data := os.read(key.fd, 1 << 16):
                        self._take(key.data, data, recorder)
                    else:
                        selector.unregister(key.fd)

    def _take(self, name: str, data: bytes, recorder: "_Recorder") -> None:
        if name == "said":
            self._said += data
            return
        recorder.add(name, data)
        with suppress(OSError):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]

    def verdict(self) -> int:
        """0. Raises what the command raised, or CommandFailed."""
        code = self._process.exitcode or 0
        if code == 0:
            return 0
        if code < 0:
            name = signal.Signals(-code).name
            raise CommandFailed(f"{self._command} was killed by {name}", exit_code=128 - code, signal=-code)
        if self._said:
            raised, text, trace = pickle.loads(self._said)  # noqa: S301 - our own child's
            if raised is not None:
                raise pickle.loads(raised) from _Trace(trace)  # noqa: S301 - the same
            raise CommandFailed(f"{self._command}: {text}", exit_code=code) from _Trace(trace)
        raise CommandFailed(f"{self._command} ended with exit code {code}", exit_code=code)


class _Trace(Exception):
    """Shows where in the command's process an exception was raised."""

    def __str__(self) -> str:
        return f"in the command's process\n{self.args[0]}"


def _command(call: Callable[[], object], writes: dict[str, int]) -> None:
    """The command's process. What leaves it by SystemExit becomes its exit code."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(writes["stdout"], 1)
    os.dup2(writes["stderr"], 2)
    try:
        call()
    except SystemExit:
        raise
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        code = _say(error, writes["said"])
        raise SystemExit(code) from None
    finally:
        connections.close_all()


def _say(error: Exception, end: int) -> int:
    """Print an error as manage.py does, and pass it on; the exit code."""
    trace = traceback.format_exc()
    if isinstance(error, CommandError):
        sys.stderr.write(f"CommandError: {error}\n")
    else:
        sys.stderr.write(trace)
    try:
        raised = pickle.dumps(error)
        pickle.loads(raised)  # noqa: S301 - made a line above
    except Exception:
        raised = None  # it holds what cannot travel, or is not made from its arguments
    with suppress(OSError), os.fdopen(end, "wb") as said:
        pickle.dump((raised, f"{type(error).__name__}: {error}", trace), said)
    code = getattr(error, "returncode", 1) if isinstance(error, CommandError) else 1
    return code if isinstance(code, int) and 0 < code < 256 else 1


# What it writes -----------------------------------------------------------------------------------------------------


class _Recorder:
    """Stores what a command writes, byte for byte, at most every STORE_SECONDS; the oldest when it is too much.

    The command never waits for the database. What cannot be stored is dropped, which followers see by the positions.
    """

    def __init__(self, run_id: uuid.UUID, epoch: int) -> None:
        self._run_id, self._epoch = run_id, epoch
        self._limit = conf.settings().command_output_bytes
        self._lock = threading.Lock()
        self._written = {"stdout": 0, "stderr": 0}
        self._pending: list[Piece] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._store_all, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, stream: str, data: bytes) -> None:
        """Note what came."""
        with self._lock:
            position = self._written[stream]
            self._written[stream] += len(data)
            kept = data[: max(0, self._limit - position)]
            last = self._pending[-1] if self._pending else None
            if not kept:
                return
            if last is not None and last.stream == stream and len(last.data) + len(kept) <= PIECE_BYTES:
                self._pending[-1] = Piece(stream, last.position, last.data + kept)
            else:
                self._pending.append(Piece(stream, position, kept))

    def finish(self) -> None:
        """Store the rest and where the streams end; nothing more may come."""
        if self._thread.ident is None:
            return
        with self._lock:
            self._pending += [Piece(stream, written, b"", ended=True) for stream, written in self._written.items()]
        self._done.set()
        self._thread.join()

    def _store_all(self) -> None:
        try:
            while not self._done.wait(STORE_SECONDS):
                self._store()
            self._store()
        except DatabaseError as error:
            # The command goes on, and its outcome counts; the run's output has what it printed, too.
            sys.stderr.write(f"What the command writes cannot be stored any more: {type(error).__name__}\n")
        finally:
            connections.close_all()

    def _store(self) -> None:
        with self._lock:
            pieces, self._pending = self._pending, []
        if pieces:
            persist(lambda: self._add(pieces))

    def _add(self, pieces: list[Piece]) -> None:
        try:
            streams.add(self._run_id, self._epoch, pieces)
        except DatabaseError as error:
            if migrations.may_be_missing(error):  # SQLite says so by an error that persist would try again
                raise DatabaseError("migrations are not applied") from error
            raise
