"""A server of ours in a process of its own, run from Python: what the emulator and the edge have in common."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class ServerError(RuntimeError):
    """The server did not start; the message is what it said."""


class ServerProcess(ABC):
    """Ready when the `with` block begins, gone when it ends. It also ends when this process ends.

    `state_dir` is kept when given, else temporary; `ready_seconds` is how long it may take to start.
    """

    title: ClassVar[str]
    """Its name in sentences and of its files: "emulator" makes emulator.jsonl and emulator.stderr."""
    module: ClassVar[str]
    error: ClassVar[type[ServerError]]
    goodbye_seconds: ClassVar[float] = 10

    def __init__(self, state_dir: str | Path | None, ready_seconds: float) -> None:
        self.url = ""
        self._kept_dir = Path(state_dir).absolute() if state_dir else None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._ready_seconds = ready_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _options(self) -> list[str]:
        """Its command line. Secrets never: a command line is for everybody to read."""

    @abstractmethod
    def _environment(self) -> Mapping[str, str]:
        """Its environment, which is how token and secrets travel."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._process is None:
            raise self.error(f"the {self.title} is not running")
        return self._process.pid

    @property
    def state_dir(self) -> Path:
        """Where its journal and its other files are."""
        if self._kept_dir is not None:
            return self._kept_dir
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix=f"machines-{self.title}-")
        return Path(self._temporary.name)

    @property
    def log_path(self) -> Path:
        """The journal: one JSON object a line."""
        return self.state_dir / f"{self.title}.jsonl"

    def start(self) -> Self:
        """Start, and wait until it accepts. Raises its error with what it said when it does not."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        stderr_path = self.state_dir / f"{self.title}.stderr"
        with stderr_path.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command(),
                env=self._with_package(self._environment()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        ready, line = f"{self.title} ready on ", self._first_line(self._process)
        if not line.startswith(ready):
            self._end_process(timeout_seconds=1)
            said = stderr_path.read_text(errors="replace").strip()
            self.stop()
            raise self.error(said or f"the {self.title} was not ready within {self._ready_seconds} s")
        self.url = line.removeprefix(ready).strip()
        return self

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Ask it to end, and kill it when it does not in time. Safe to call twice."""
        self._end_process(self.goodbye_seconds if timeout_seconds is None else timeout_seconds)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def kill(self) -> None:
        """Kill it without a goodbye, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def journal(self, kind: str = "") -> Iterator[dict[str, Any]]:
        """The lines of the journal so far; of one kind when it is given."""
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if kind in ("", entry["kind"]):
                yield entry

    def _end_process(self, timeout_seconds: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _command(self) -> list[str]:
        words = [sys.executable, "-m", self.module, "--watch-stdin", "--state-dir", str(self.state_dir)]
        return [*words, *self._options()]

    def _with_package(self, environment: Mapping[str, str]) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), environment.get("PYTHONPATH"))))
        return {**environment, "PYTHONPATH": path}

    def _first_line(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        deadline = time.monotonic() + self._ready_seconds
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(process.stdout.fileno(), 4096) if ready else b""
            if not chunk:
                break
            line += chunk
        return line.decode()
