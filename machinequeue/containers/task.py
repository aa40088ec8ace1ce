"""A task that is an image and a command instead of a function of ours."""

import base64
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from types import FunctionType
from typing import Any

from machinequeue.backend.result import MachineTaskResult
from machinequeue.backend.task import Call, MachineTask
from machinequeue.compat import (
    DEFAULT_TASK_BACKEND_ALIAS,
    DEFAULT_TASK_PRIORITY,
    DEFAULT_TASK_QUEUE_NAME,
    InvalidTask,
)
from machinequeue.errors import InvalidArguments

LARGEST_INPUT = 1024 * 1024
"""Bytes of all files, environment and stdin of a run together."""
LARGEST_COMMAND = 32 * 1024
LONGEST_TIMEOUT = 3600.0

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IMAGE = re.compile(r"[a-z0-9][\w./:@-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ContainerTask(MachineTask):
    """An image whose commands are run as runs. Enqueue it with `cmd`, and with `files`, `env` and `stdin` if wanted.

    A run's result is {"exit_code", "stdout", "stderr", "truncated", "seconds"}: texts of at most
    MACHINEQUEUE["CONTAINER_OUTPUT"] characters each; exit codes over 128 mean a signal.
    """

    container: str = ""
    check: bool = False

    @property
    def module_path(self) -> str:
        """Module and name of the variable that holds the task."""
        function = self.func
        if "<" in function.__qualname__:
            module = sys.modules.get(function.__module__)
            known = vars(module).items() if module is not None else ()
            name = next((name for name, each in known if getattr(each, "func", None) is function), "")
            if not name:
                raise InvalidTask(
                    f"A container_task of {function.__module__} is not a variable of that module: write "
                    "name = container_task(...) at the top level, so that its runs can be found by name."
                )
            function.__name__ = function.__qualname__ = name
        return f"{function.__module__}.{function.__qualname__}"

    def asked_beside(self) -> dict[str, Any]:
        """See MachineTask: the image, under which launches look for it, and what is made of an exit code."""
        return {"image": self.container, "container": {"check": self.check}}

    def using(self, **options: Any) -> "MachineTask":
        """A copy with other options, as of MachineTask: priority, queue_name, run_after, backend, memory_mb,
        max_memory_mb, cpus, cpu_kind, regions, timeout, max_attempts. Raises TypeError for others."""
        for name in ("image", "isolation"):
            if options.get(name) is not None:
                raise TypeError(f"using() of a container_task has no option {name!r}: make another container_task.")
        return super().using(**options)

    def enqueue(
        self,
        cmd: Sequence[str],
        *,
        files: Mapping[str, str | bytes] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> MachineTaskResult:
        """Write the run of this command. `files` are made below the folder that the command starts in (/tmp/work).

        All of it is kept in the run's row, where whoever may read runs reads it. Raises InvalidArguments.
        """
        return super().enqueue(**_checked(cmd, files or {}, env or {}, stdin))

    async def aenqueue(
        self,
        cmd: Sequence[str],
        *,
        files: Mapping[str, str | bytes] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> MachineTaskResult:
        """`enqueue`, from async code."""
        return await super().aenqueue(**_checked(cmd, files or {}, env or {}, stdin))

    def enqueue_many(self, calls: Iterable[Call]) -> list[MachineTaskResult]:
        """Enqueue many commands: each (cmd,) or (), and a dict of what else `enqueue` takes."""
        return super().enqueue_many([((), _bound(*args, **kwargs)) for args, kwargs in calls])


def _bound(cmd: Sequence[str], files: Any = None, env: Any = None, stdin: str = "") -> dict[str, Any]:
    return _checked(cmd, files or {}, env or {}, stdin)


def _checked(cmd: object, files: Mapping[str, str | bytes], env: Mapping[str, str], stdin: object) -> dict[str, Any]:
    """The arguments as a run's row has them."""
    if isinstance(cmd, str) or not isinstance(cmd, Sequence) or not cmd or not all(isinstance(w, str) for w in cmd):
        raise InvalidArguments(f'cmd must be a list of strings, such as ["python", "main.py"], not {cmd!r:.100}.')
    if sum(len(word.encode(errors="replace")) for word in cmd) > LARGEST_COMMAND:
        raise InvalidArguments(f"cmd has more than {LARGEST_COMMAND} bytes: put what is long into files or stdin.")
    if not isinstance(stdin, str):
        raise InvalidArguments(f"stdin must be a string, not {type(stdin).__name__}: put bytes into files.")
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name) or not isinstance(value, str):
            raise InvalidArguments(f"env[{name!r:.100}] must be a variable's name with a string.")
    contents = {path: _content(path, content) for path, content in files.items()}
    texts = [stdin, *env.values(), *(each.get("text", each.get("base64", "")) for each in contents.values())]
    if (size := sum(len(text.encode(errors="replace")) for text in texts)) > LARGEST_INPUT:
        raise InvalidArguments(
            f"files, env and stdin have {size} bytes, and {LARGEST_INPUT} is the most: have the command fetch the rest."
        )
    return {"cmd": list(cmd), "files": contents, "env": dict(env), "stdin": stdin}


def _content(path: object, content: object) -> dict[str, str]:
    if not isinstance(path, str) or not path or "\0" in path or "\n" in path:
        raise InvalidArguments(f"files has the name {path!r:.100}: a path such as 'main.py' is wanted.")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or path.endswith("/") or not parts.name:
        raise InvalidArguments(f"files[{path!r:.100}] must be below the folder of the command: no leading /, no '..'.")
    if isinstance(content, str):
        return {"text": content}
    if isinstance(content, bytes):
        return {"base64": base64.b64encode(content).decode()}
    raise InvalidArguments(f"files[{path!r:.100}] must be a string or bytes, not {type(content).__name__}.")


def _make_function(module: str) -> FunctionType:
    def container(cmd: list[str], files: dict[str, Any], env: dict[str, str], stdin: str) -> None:
        raise NotImplementedError("A container's command runs in its own machine, never in a process of ours.")

    container.__module__, container.__qualname__ = module, "<container_task>"
    return container  # type: ignore[return-value]


def container_task(  # noqa: PLR0913 - all by keyword, each an option of a task
    *,
    image: str,
    memory_mb: int = 256,
    max_memory_mb: int | None = None,
    cpus: int = 1,
    cpu_kind: str = "shared",
    regions: Sequence[str] | str | None = None,
    timeout: float = 10,
    max_attempts: int = 1,
    check: bool = False,
    queue_name: str = DEFAULT_TASK_QUEUE_NAME,
    priority: int = DEFAULT_TASK_PRIORITY,
    backend: str = DEFAULT_TASK_BACKEND_ALIAS,
) -> ContainerTask:
    """A task that runs commands in `image`, with nothing of ours: assign it to a variable of a module.

    Without `regions` they are the queue's. `timeout` is in seconds, rounded up to whole ones, at most an hour; over it
    a run fails for good. Memory does not grow unless `max_memory_mb` allows it. With `check` an exit code other than 0
    is a failure of the run, and tried again up to `max_attempts`; without, it is a result like any other.

    Raises InvalidTask, at import, for what cannot work.
    """
    if not _IMAGE.fullmatch(image):
        raise InvalidTask(f"image must be a reference such as 'python:3.13-slim', not {image!r:.100}.")
    if timeout > LONGEST_TIMEOUT:
        raise InvalidTask(f"timeout of a container_task must be at most {LONGEST_TIMEOUT:g} s, not {timeout:g}.")
    module = sys._getframe(1).f_globals["__name__"]  # where its variable will be
    given: dict[str, Any] = {
        "func": _make_function(module),
        "container": image,
        "check": check,
        "memory_mb": memory_mb,
        "max_memory_mb": memory_mb if max_memory_mb is None else max_memory_mb,
        "cpus": cpus,
        "cpu_kind": cpu_kind,
        "regions": (regions,) if isinstance(regions, str) else regions and tuple(regions),
        "timeout": timeout,
        "max_attempts": max_attempts,
        "isolation": "machine",
        "image": "current",
        "queue_name": queue_name,
        "priority": priority,
        "backend": backend,
        "takes_context": False,
        "run_after": None,
    }
    assert given.keys() <= {field.name for field in fields(ContainerTask)}
    return ContainerTask(**given)
