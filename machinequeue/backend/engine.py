"""The django.tasks backend."""

import inspect
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from django.core.checks import CheckMessage
from django.db import transaction
from django.utils import timezone
from django.utils.module_loading import import_string

from machinequeue import conf, wakeups
from machinequeue.backend.result import MachineTaskContext, MachineTaskResult
from machinequeue.backend.task import MachineTask
from machinequeue.compat import (
    AnyTask,
    BaseTaskBackend,
    InvalidTask,
    Task,
    TaskError,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_signals,
)
from machinequeue.errors import ConfigurationError, InvalidArguments, TaskNotImportable
from machinequeue.lifecycle import AttemptStatus, RunStatus
from machinequeue.payload import NotStorable, normalize
from machinequeue.records import TaskRun, runs, sql
from machinequeue.records.claims import Claim

_EDGE = {RunStatus.READY: "READY", RunStatus.RUNNING: "RUNNING", RunStatus.SUCCESSFUL: "SUCCESSFUL"}
_ENDINGS = {RunStatus.CANCELLED: "RunCancelled", RunStatus.EXPIRED: "RunExpired"}


@dataclass(frozen=True)
class _Compiled:
    """What every enqueue of a task has in common."""

    path: str
    spec: str
    spec_key: str
    timeout: float
    max_attempts: int
    signature: inspect.Signature


class MachineBackend(BaseTaskBackend):
    """Runs each task on a machine launched for it."""

    task_class = MachineTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, dict(params))
        self._compiled: dict[Any, _Compiled] = {}

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        return []  # `machinequeue.checks` covers the settings of all backends at once

    # Validation -----------------------------------------------------------------------------------------------------

    def validate_task(self, task: AnyTask) -> None:
        """Raises InvalidTask, with the remedy, for a task that no machine of ours could execute."""
        try:
            policies = conf.policies(self.alias)
        except ConfigurationError as error:
            raise InvalidTask(str(error)) from error
        if task.queue_name not in policies:
            hint = conf.suggest(task.queue_name, policies)
            raise InvalidTask(f"Queue {task.queue_name!r} is not one of TASKS[{self.alias!r}]['QUEUES'].{hint}")
        super().validate_task(task)
        if isinstance(task, MachineTask):
            self._validate_options(task, policies[task.queue_name])

    def _validate_options(self, task: MachineTask, policy: conf.Policy) -> None:
        asked = task.asked()
        for name, value in asked.items():
            if problem := conf.value_problem(conf.Policy, name, value):
                raise InvalidTask(f"{name} of task {task.name} {problem}.")
        merged = conf.Policy(**{**_values(policy), **asked})
        if problems := conf.policy_problems(merged):
            raise InvalidTask(f"Task {task.name} on queue {task.queue_name}: {' '.join(problems)}")

    # Enqueue --------------------------------------------------------------------------------------------------------

    def enqueue(  # type: ignore[override]  # the stubs bind the result to the task's types, which are Any here
        self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> MachineTaskResult:
        """Write one READY run. Raises InvalidTask, InvalidArguments."""
        new = self._new_run(task, self._compile(task), args, kwargs, _run_after(task))
        return self._create(task, new)

    def enqueue_tick(
        self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], metadata: dict[str, Any], seconds: float
    ) -> MachineTaskResult:
        """`enqueue`, to be started in so many seconds, with metadata that says which tick the run is for."""
        run_after = runs.database_now() + timedelta(seconds=seconds) if seconds else None
        new = self._new_run(task, self._compile(task), args, kwargs, run_after)
        return self._create(task, replace(new, metadata=metadata))

    def check_call(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises what `enqueue` would raise: InvalidTask, InvalidArguments."""
        self._new_run(task, self._compile(task), args, kwargs, None)

    def _create(self, task: Any, new: runs.NewRun) -> MachineTaskResult:
        run_id, enqueued_at = runs.create(new)
        self._wake_on_commit(new.queue)
        return self._enqueued(task, run_id, new, enqueued_at)

    def enqueue_many(self, task: MachineTask, calls: Iterable[Any]) -> list[MachineTaskResult]:
        """Write a READY run per (args, kwargs) pair, all or none. Raises InvalidTask, InvalidArguments."""
        compiled, run_after = self._compile(task), _run_after(task)
        new = [self._new_run(task, compiled, *_pair(call, index), run_after) for index, call in enumerate(calls)]
        if not new:
            return []
        ids, now = runs.create_many(new), timezone.now()
        self._wake_on_commit(task.queue_name)
        return [self._enqueued(task, run_id, run, now) for run_id, run in zip(ids, new, strict=True)]

    def _wake_on_commit(self, queue: str) -> None:
        # A function, not a partial: Django 5.2 asks a callback that raised for its __qualname__.
        def wake() -> None:
            wakeups.wake_soon(self.alias, queue)

        transaction.on_commit(wake, using=sql.alias(), robust=True)

    def _compile(self, task: Any) -> _Compiled:
        compiled = self._compiled.get(task)
        if compiled is None:
            self.validate_task(task)
            asked = task.asked() if isinstance(task, MachineTask) else {}
            merged = {**_values(conf.policy(self.alias, task.queue_name)), **asked}
            spec = conf.spec_of(conf.Policy(**merged), conf.settings().image)
            spec |= task.asked_beside() if isinstance(task, MachineTask) else {}
            compiled = self._compiled[task] = _Compiled(
                path=task.module_path,
                spec=sql.dumps(spec),
                spec_key=conf.spec_key(spec),
                timeout=float(merged["timeout"]),
                max_attempts=merged["max_attempts"],
                signature=inspect.signature(task.func),
            )
        return compiled

    def _new_run(
        self,
        task: Any,
        compiled: _Compiled,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        run_after: datetime | None,
    ) -> runs.NewRun:
        given = (None, *args) if task.takes_context else args
        try:
            compiled.signature.bind(*given, **kwargs)
        except TypeError as error:
            raise InvalidArguments(f"{task.name}{compiled.signature} cannot be called so: {error}.") from None
        try:
            plain_args = [normalize(value, f"args[{index}]") for index, value in enumerate(args)]
            plain_kwargs = {name: normalize(value, name) for name, value in kwargs.items()}
        except NotStorable as error:
            raise InvalidArguments(f"{task.name}: {error}") from None
        return runs.NewRun(
            task=compiled.path,
            args=plain_args,
            kwargs=plain_kwargs,
            backend=self.alias,
            queue=task.queue_name,
            priority=task.priority,
            run_after=run_after,
            spec=compiled.spec,
            spec_key=compiled.spec_key,
            timeout=compiled.timeout,
            max_attempts=compiled.max_attempts,
        )

    def _enqueued(self, task: Any, run_id: uuid.UUID, new: runs.NewRun, at: datetime | None) -> MachineTaskResult:
        result = MachineTaskResult(
            task=task,
            id=str(run_id),
            status=TaskResultStatus.READY,
            enqueued_at=at,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=new.args,
            kwargs=new.kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
            metadata=new.metadata,
        )
        task_signals.task_enqueued.send_robust(type(self), task_result=result)
        return result

    # Results --------------------------------------------------------------------------------------------------------

    def get_result(self, result_id: str) -> MachineTaskResult:
        """Raises TaskResultDoesNotExist, for a malformed id too."""
        try:
            run_id = uuid.UUID(result_id)
        except (ValueError, AttributeError, TypeError):
            raise TaskResultDoesNotExist(f"{result_id!r} is not the id of a run, which is a UUID.") from None
        run = runs.get(run_id)
        if run is None or run.backend != self.alias:
            raise TaskResultDoesNotExist(
                f"There is no run {run_id} in backend {self.alias!r}; it may have been pruned."
            )
        return self._result(run, runs.traces(run_id) if run.epoch else [])

    def _result(self, run: TaskRun, traces: list[runs.Trace]) -> MachineTaskResult:
        result = MachineTaskResult(
            task=self.restore(run.task, run.queue, run.priority, _deferral(run)),
            id=str(run.pk),
            status=TaskResultStatus(_EDGE.get(RunStatus(run.status), "FAILED")),
            enqueued_at=run.enqueued_at,
            started_at=run.started_at,
            finished_at=run.finished_at,
            last_attempted_at=run.last_attempted_at,
            args=run.args,
            kwargs=run.kwargs,
            backend=self.alias,
            errors=_errors(run, traces),
            worker_ids=[trace.worker_id for trace in traces],
            run_status=run.status,
            progress=run.progress,
            metadata=run.metadata,
        )
        object.__setattr__(result, "_return_value", run.return_value)
        return result

    def restore(self, path: str, queue: str, priority: int, run_after: datetime | None) -> AnyTask:
        """The task of a run as it was enqueued, not validated again: settings may have changed since."""
        changes = {"queue_name": queue, "priority": priority, "run_after": run_after, "backend": self.alias}
        try:
            declared = import_string(path)
        except ImportError:
            declared = None
        if not isinstance(declared, Task):
            declared = _bare(MachineTask, {"func": _missing(path)})
        values = {field.name: getattr(declared, field.name) for field in fields(declared)}
        return _bare(type(declared), {**values, **changes})

    # In the task's process ------------------------------------------------------------------------------------------

    def context_of(self, claim: Claim, worker_id: str, send: Callable[[dict[str, Any]], None]) -> MachineTaskContext:
        """The context of a claimed run, without asking the database (unless it had attempts before)."""
        earlier = [trace.worker_id for trace in runs.traces(claim.run_id)[:-1]] if claim.epoch > 1 else []
        result = MachineTaskResult(
            task=self.restore(claim.task, claim.queue, claim.priority, _deferral(claim)),
            id=str(claim.run_id),
            status=TaskResultStatus.RUNNING,
            enqueued_at=claim.enqueued_at,
            started_at=claim.started_at,
            finished_at=None,
            last_attempted_at=claim.last_attempted_at,
            args=claim.args,
            kwargs=claim.kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[*earlier, worker_id],
            run_status=RunStatus.RUNNING.value,
            metadata=claim.metadata,
        )
        return MachineTaskContext(task_result=result, send=send, checkpoint=claim.checkpoint)


def _values(policy: conf.Policy) -> dict[str, Any]:
    return {field.name: getattr(policy, field.name) for field in fields(policy)}


def _run_after(task: Any) -> datetime | None:
    if isinstance(task, MachineTask) and task.delay is not None:
        return runs.database_now() + task.delay
    moment: datetime | None = task.run_after
    return moment


def _deferral(run: TaskRun | Claim) -> datetime | None:
    """When the run is due, if it was not at once: a row always has a time."""
    return run.run_after if run.run_after and run.enqueued_at and run.run_after > run.enqueued_at else None


def _pair(call: Any, index: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
    match call:
        case (list() | tuple() as args, Mapping() as kwargs):
            return args, kwargs
    raise InvalidArguments(f"calls[{index}] must be an (args, kwargs) pair such as ((1, 2), {{}}), not {call!r:.100}.")


def _errors(run: TaskRun, traces: list[runs.Trace]) -> list[TaskError]:
    fine = (AttemptStatus.RUNNING, AttemptStatus.SUCCEEDED)
    errors = [
        TaskError(
            exception_class_path=trace.error or "machinequeue.errors.RunFailed",
            traceback=trace.traceback or trace.sentence,
        )
        for trace in traces
        if trace.status not in fine
    ]
    ending = "RunRefused" if _refused(run, traces) else _ENDINGS.get(RunStatus(run.status))
    if ending:
        errors.append(TaskError(exception_class_path=f"machinequeue.errors.{ending}", traceback=run.reason))
    return errors


def _refused(run: TaskRun, traces: list[runs.Trace]) -> bool:
    """Whether the run failed while it waited for a machine: its end is no attempt's, but later."""
    if run.status != RunStatus.FAILED or run.finished_at is None:
        return False
    ended = [trace.finished_at for trace in traces if trace.finished_at is not None]
    return not ended or run.finished_at > max(ended)


def _bare(kind: type[AnyTask], values: dict[str, Any]) -> AnyTask:
    defaults = {
        "priority": 0,
        "backend": "default",
        "queue_name": "default",
        "run_after": None,
        "takes_context": False,
    }
    task = object.__new__(kind)
    for field in fields(kind):
        object.__setattr__(task, field.name, values.get(field.name, defaults.get(field.name, field.default)))
    return task


def _missing(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise TaskNotImportable(f"The task {path} cannot be imported any more.")

    missing.__module__, missing.__qualname__, missing.__name__ = module, name, name
    return missing
