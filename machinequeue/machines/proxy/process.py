"""Run the edge from Python, for tests and commands."""

from __future__ import annotations

import os
from pathlib import Path

from machinequeue.machines.emulator.loopback import TOKEN_VARIABLE
from machinequeue.machines.server_process import ServerError, ServerProcess


class EdgeError(ServerError):
    """The edge did not start; the message is what it said."""


class Edge(ServerProcess):
    """An edge in a process of its own, ready when the `with` block begins, gone when it ends.

    `api` and `token` are those of a Machines API, such as `Emulator.url` and `Emulator.token`. Times are seconds.
    `state_dir` is kept when given, else temporary. It also ends when this process ends. Stopping it waits for requests
    in flight, at most for its grace. Kinds of its journal: request, start, stop, problem.
    """

    title = "edge"
    module = "machinequeue.machines.proxy"
    error = EdgeError
    goodbye_seconds = 20

    def __init__(  # noqa: PLR0913  # all by keyword, each an option of the command line
        self,
        *,
        api: str,
        token: str,
        app: str = "emulated",
        port: int = 0,
        region: str = "iad",
        idle_seconds: float = 300,
        patience_seconds: float = 30,
        cache_seconds: float = 0.5,
        grace_seconds: float = 10,
        state_dir: str | Path | None = None,
        ready_seconds: float = 20,
    ) -> None:
        super().__init__(state_dir, ready_seconds)
        self.app = app
        self._token = token
        self._words = {
            "--api": api,
            "--app": app,
            "--port": port,
            "--region": region,
            "--idle-seconds": idle_seconds,
            "--patience-seconds": patience_seconds,
            "--cache-seconds": cache_seconds,
            "--grace-seconds": grace_seconds,
        }

    def __repr__(self) -> str:
        return f"<Edge {self.app} at {self.url or 'rest'}>"

    def _options(self) -> list[str]:
        return [word for option, value in self._words.items() for word in (option, str(value))]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, TOKEN_VARIABLE: self._token}
