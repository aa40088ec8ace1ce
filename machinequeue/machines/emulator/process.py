"""Run the emulator from Python, for tests and commands."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator.options import SECRETS_VARIABLE, TOKEN_VARIABLE
from machinequeue.machines.schema import Machine

PACKAGE_ROOT = Path(__file__).resolve().parents[3]
READY = "emulator ready on "
ImagePlace = str | Path | tuple[str | Path, str | Path]


class EmulatorError(RuntimeError):
    """The emulator did not start; the message is what it said."""


class Emulator:
    """An emulator in a process of its own, ready when the `with` block begins, gone with its machines when it ends.

    `images` maps a reference to a directory, or to a directory and an interpreter; without any, "app:latest" is the
    working directory with this interpreter. `secrets` are the app's; `env_secrets` adds the variables of `env`
    (default: of this process). `state_dir` is kept when given, else temporary. It also ends when this process ends.
    """

    def __init__(  # noqa: PLR0913  # all by keyword, each an option of the command line
        self,
        *,
        app: str = "emulated",
        token: str = "emulator-token",  # noqa: S107  # opens a server on loopback, nothing else
        images: Mapping[str, ImagePlace] | None = None,
        secrets: Mapping[str, str] | None = None,
        env_secrets: bool = False,
        env: Mapping[str, str] | None = None,
        state_dir: str | Path | None = None,
        rate_limits: bool = False,
        port: int = 0,
        region: str = "iad",
        ready_seconds: float = 20,
    ) -> None:
        self.app = app
        self.token = token
        self.url = ""
        self.region = region
        self._images = images or {"app:latest": Path.cwd()}
        self._secrets = dict(secrets or {})
        self._env_secrets = env_secrets
        self._env = dict(os.environ if env is None else env)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._kept_dir = Path(state_dir).absolute() if state_dir else None
        self._rate_limits = rate_limits
        self._port = port
        self._ready_seconds = ready_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Emulator {self.app} at {self.url or 'rest'}>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the emulator."""
        if self._process is None:
            raise EmulatorError("the emulator is not running")
        return self._process.pid

    @property
    def state_dir(self) -> Path:
        """Where the journal and the output of machines are."""
        if self._kept_dir is not None:
            return self._kept_dir
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="machines-emulator-")
        return Path(self._temporary.name)

    @property
    def log_path(self) -> Path:
        """The journal: one JSON object a line."""
        return self.state_dir / "emulator.jsonl"

    def start(self) -> Self:
        """Start, and wait until it accepts. Raises EmulatorError with what it said when it does not."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self._stderr_path.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command(), env=self._environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        line = self._first_line()
        if not line.startswith(READY):
            self._end_process(timeout_seconds=1)
            said = self._stderr_path.read_text(errors="replace").strip()
            self.stop()
            raise EmulatorError(said or f"the emulator was not ready within {self._ready_seconds} s")
        self.url = line.removeprefix(READY).strip()
        return self

    def stop(self, timeout_seconds: float = 10) -> None:
        """End it and its machines. Safe to call twice."""
        self._end_process(timeout_seconds)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _end_process(self, timeout_seconds: float) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._close_pipes(process)

    def kill(self) -> None:
        """Kill it without a goodbye, as a crash would; its machines die too."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def client(self, **options: Any) -> MachinesClient:
        """A new client for its app."""
        return MachinesClient(self.app, token=self.token, base_url=self.url, **options)

    def machines(self) -> list[Machine]:
        """Every machine of its app, destroyed ones too."""
        with self.client() as client:
            return client.list(include_deleted=True)

    def journal(self) -> Iterator[dict[str, Any]]:
        """The lines of the journal so far."""
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)

    def output(self, machine_id: str) -> str:
        """What a machine printed so far, with the platform's own lines."""
        path = self.state_dir / "logs" / f"{machine_id}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def _stderr_path(self) -> Path:
        return self.state_dir / "emulator.stderr"

    def _command(self) -> list[str]:
        words = [sys.executable, "-m", "machinequeue.machines.emulator", "--watch-stdin", "--port", str(self._port)]
        words += ["--app", self.app, "--region", self.region, "--state-dir", str(self.state_dir)]
        for reference, place in self._images.items():
            directory, python = place if isinstance(place, tuple) else (place, sys.executable)
            words += ["--image", f"{reference}={directory}:{python}"]
        words += ["--env-secrets"] if self._env_secrets else []
        words += [] if self._rate_limits else ["--no-rate-limits"]
        return words

    def _environment(self) -> dict[str, str]:
        # Token and secrets travel by environment: a command line is for everybody to read.
        path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), self._env.get("PYTHONPATH"))))
        extra = {TOKEN_VARIABLE: self.token, SECRETS_VARIABLE: json.dumps(self._secrets), "PYTHONPATH": path}
        return {**self._env, **extra}

    def _first_line(self) -> str:
        process = self._process
        assert process is not None
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

    def _close_pipes(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
