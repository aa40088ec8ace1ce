"""A task that runs on a machine: Django's Task, and the machine it asks for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, cast, overload

from django.utils.module_loading import import_string

from machinequeue import conf, timetable
from machinequeue.backend.result import MachineTaskResult
from machinequeue.compat import (
    DEFAULT_TASK_BACKEND_ALIAS,
    DEFAULT_TASK_PRIORITY,
    DEFAULT_TASK_QUEUE_NAME,
    AnyTask,
    InvalidTask,
    Task,
)

Backoff = Callable[[BaseException, MachineTaskResult], float | None]
Call = tuple[Sequence[Any], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class MachineTask(AnyTask):
    """A task and the machine it asks for. What is None comes from the queue's policy.

    `backoff(exception, result)` returns the seconds before the next attempt, or None for no further attempt; it runs in
    the task's process. An exception that is not one of `retry_on` ends the run.
    """

    timeout: float | None = None
    max_attempts: int | None = None
    memory_mb: int | None = None
    max_memory_mb: int | None = None
    cpus: int | None = None
    cpu_kind: str | None = None
    regions: tuple[str, ...] | None = None
    isolation: str | None = None
    image: str | None = None
    backoff: Backoff | None = None
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    delay: timedelta | None = None
    """Set by `using(run_after=timedelta(...))`: counted from the enqueue, by the database's clock."""
    schedule: timetable.When | None = None
    """When it is enqueued by itself, without arguments, under its own path as the schedule's name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _known[self.func] = self

    def using(self, **options: Any) -> "MachineTask":
        """A copy with other options: priority, queue_name, run_after (a datetime or a timedelta), backend,
        memory_mb, max_memory_mb, cpus, cpu_kind, regions, timeout, max_attempts, isolation, image. Raises TypeError for
        others, and for a moment that is none.
        """
        changes = {name: value for name, value in options.items() if value is not None}
        _refuse_unknown(changes, _USING, "using()")
        match changes.get("run_after"):
            case timedelta():
                changes["delay"] = changes.pop("run_after")
            case datetime():
                changes["delay"] = None
            case None:
                pass
            case other:
                raise TypeError(f"using(): run_after is a datetime or a timedelta, not {other!r:.80}.")
        if "regions" in changes:
            changes["regions"] = _regions(changes["regions"])
        return replace(self, **changes)

    def enqueue(self, *args: Any, **kwargs: Any) -> MachineTaskResult:
        """Write the run, in the caller's transaction if there is one, and send a wake-up on commit.

        Raises InvalidArguments when the arguments do not fit the signature or are not JSON.
        """
        return cast(MachineTaskResult, self.get_backend().enqueue(self, cast(Any, args), kwargs))

    async def aenqueue(self, *args: Any, **kwargs: Any) -> MachineTaskResult:
        """`enqueue`, from async code."""
        return cast(MachineTaskResult, await self.get_backend().aenqueue(self, cast(Any, args), kwargs))

    def enqueue_many(self, calls: Iterable[Call]) -> list[MachineTaskResult]:
        """Enqueue many calls, each an (args, kwargs) pair: one insert, one wake-up, all or none."""
        return cast(list[MachineTaskResult], cast(Any, self.get_backend()).enqueue_many(self, calls))

    def get_result(self, result_id: str) -> MachineTaskResult:
        """The result of an earlier enqueue. Raises TaskResultDoesNotExist, TaskResultMismatch."""
        return cast(MachineTaskResult, super().get_result(result_id))

    async def aget_result(self, result_id: str) -> MachineTaskResult:
        """`get_result`, from async code."""
        return cast(MachineTaskResult, await super().aget_result(result_id))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its path, as Django 6.1 does it; on 5.2 and 6.0 too."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "func"}
        return _unpickle, (type(self), self.module_path, values)

    def asked_beside(self) -> dict[str, Any]:
        """What the spec of its runs has beside the policy's keys."""
        return {}

    def asked(self) -> dict[str, Any]:
        """The policy keys that the task sets for itself."""
        values = {name: getattr(self, name) for name in conf.TASK_OPTIONS if getattr(self, name) is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _unpickle(kind: type[MachineTask], path: str, values: dict[str, Any]) -> MachineTask:
    try:
        func = import_string(path).func
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Expected {path!r} to point to a Task instance.") from error
    return kind(func=func, **values)


_known: dict[Callable[..., Any], MachineTask] = {}
"""The tasks that this process has made, by function, in that order. Their paths may be known only after the import."""


def registered() -> dict[str, AnyTask]:
    """The tasks that this process has imported and that a machine could import too, by path."""
    return {path: task for path in _paths() if (task := _found(path)) is not None}


def _paths() -> Iterator[str]:
    for task in list(_known.values()):
        with suppress(InvalidTask):  # it is no variable of its module, so nobody could import it
            yield task.module_path


def _found(path: str) -> AnyTask | None:
    """The task at this path; None when nothing is there, or no task."""
    try:
        found = import_string(path)
    except ImportError:
        return None
    return found if isinstance(found, Task) else None


_DECLARABLE = {field.name for field in fields(MachineTask)} - {"func", "run_after", "delay"}
_USING = {"priority", "queue_name", "run_after", "backend", *conf.TASK_OPTIONS}


def _refuse_unknown(options: Mapping[str, Any], known: set[str], place: str) -> None:
    for name in options:
        if name not in known:
            raise TypeError(f"{place} has no option {name!r}.{conf.suggest(name, known)}")


def _regions(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@overload
def machine_task(function: Callable[..., Any], /) -> MachineTask: ...
@overload
def machine_task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: bool = ...,
    timeout: float | None = ...,
    max_attempts: int | None = ...,
    memory_mb: int | None = ...,
    max_memory_mb: int | None = ...,
    cpus: int | None = ...,
    cpu_kind: str | None = ...,
    regions: Sequence[str] | str | None = ...,
    isolation: str | None = ...,
    image: str | None = ...,
    backoff: Backoff | None = ...,
    retry_on: Sequence[type[BaseException]] = ...,
    schedule: timetable.Crontab | timedelta | None = ...,
) -> Callable[[Callable[..., Any]], MachineTask]: ...


def machine_task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a module-level function a task that runs on a machine launched for it.

    Options: priority, queue_name, backend, takes_context (Django's); timeout in seconds, max_attempts, memory_mb,
    max_memory_mb, cpus, cpu_kind ("shared", "performance"), regions, isolation ("machine", "process", "shared"), image
    ("current", "same"), backoff, retry_on, schedule (a crontab() or a timedelta). Raises, at import, for options that
    cannot work: InvalidTask, InvalidSchedule or TypeError.
    """
    if "run_after" in options:
        raise TypeError("run_after cannot be given to @machine_task: use .using(run_after=...) when enqueueing.")
    _refuse_unknown(options, _DECLARABLE, "@machine_task")
    if options.get("regions") is not None:
        options["regions"] = _regions(options["regions"])
    if options.get("schedule") is not None:
        timetable.checked(options["schedule"])
    options["retry_on"] = tuple(options.get("retry_on", (Exception,)))
    core = {
        "priority": DEFAULT_TASK_PRIORITY,
        "queue_name": DEFAULT_TASK_QUEUE_NAME,
        "backend": DEFAULT_TASK_BACKEND_ALIAS,
        "takes_context": False,
        "run_after": None,
    }

    def decorate(func: Callable[..., Any]) -> MachineTask:
        return MachineTask(func=func, **{**core, **options})

    return decorate if function is None else decorate(function)


def enqueue_many(task: MachineTask, calls: Iterable[Call]) -> list[MachineTaskResult]:
    """Enqueue many calls of a task, each an (args, kwargs) pair: one insert, one wake-up, all or none."""
    if not isinstance(task, MachineTask):
        raise InvalidTask(f"enqueue_many needs a task made with @machine_task, not {task!r}.")
    return task.enqueue_many(calls)
