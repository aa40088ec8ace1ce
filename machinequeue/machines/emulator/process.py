"""Run the emulator from Python, for tests and commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator.loopback import TOKEN_VARIABLE
from machinequeue.machines.emulator.options import SECRETS_VARIABLE
from machinequeue.machines.emulator.remote_faults import Faults
from machinequeue.machines.schema import Machine
from machinequeue.machines.server_process import ServerError, ServerProcess

ImagePlace = str | Path | tuple[str | Path, str | Path]


class EmulatorError(ServerError):
    """The emulator did not start; the message is what it said."""


class Emulator(ServerProcess):
    """An emulator in a process of its own, ready when the `with` block begins, gone with its machines when it ends.

    `images` maps a reference to a directory, or to a directory and an interpreter; without any, "app:latest" is the
    working directory with this interpreter. `secrets` are the app's; `env_secrets` adds the variables of `env`
    (default: of this process). `state_dir` is kept when given, else temporary. `boot_delay` says how long boots take
    ("create=2..5"). It also ends when this process ends. Its machines die with it, also when it is killed.
    """

    title = "emulator"
    module = "machinequeue.machines.emulator"
    error = EmulatorError

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
        boot_delay: str = "",
        ready_seconds: float = 20,
    ) -> None:
        if not token:
            raise ValueError("token must not be empty: clients of the emulator show it; leave it out, or name one")
        super().__init__(state_dir, ready_seconds)
        self.app = app
        self.token = token
        self.region = region
        self._images = images or {"app:latest": Path.cwd()}
        self._secrets = dict(secrets or {})
        self._env_secrets = env_secrets
        self._env = dict(os.environ if env is None else env)
        self._rate_limits = rate_limits
        self._port = port
        self._boot_delay = boot_delay

    def __repr__(self) -> str:
        return f"<Emulator {self.app} at {self.url or 'rest'}>"

    @property
    def faults(self) -> Faults:
        """Its misbehaviours: see `machinequeue.machines.emulator.remote_faults`."""
        if not self.url:
            raise EmulatorError("the emulator is not running")
        return Faults(self.url, self.token)

    def client(self, **options: Any) -> MachinesClient:
        """A new client for its app."""
        return MachinesClient(self.app, token=self.token, base_url=self.url, **options)

    def machines(self) -> list[Machine]:
        """Every machine of its app, destroyed ones too."""
        with self.client() as client:
            return client.list(include_deleted=True)

    def output(self, machine_id: str) -> str:
        """What a machine printed so far, with the platform's own lines."""
        path = self.state_dir / "logs" / f"{machine_id}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def _options(self) -> list[str]:
        words = ["--port", str(self._port), "--app", self.app, "--region", self.region]
        for reference, place in self._images.items():
            directory, python = place if isinstance(place, tuple) else (place, sys.executable)
            words += ["--image", f"{reference}={directory}:{python}"]
        words += ["--env-secrets"] if self._env_secrets else []
        words += [] if self._rate_limits else ["--no-rate-limits"]
        words += ["--boot-delay", self._boot_delay] if self._boot_delay else []
        return words

    def _environment(self) -> dict[str, str]:
        return {**self._env, TOKEN_VARIABLE: self.token, SECRETS_VARIABLE: json.dumps(self._secrets)}
