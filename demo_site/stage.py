"""The processes behind the demo: a local Machines API, a dispatcher and, when asked for, the site."""

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings

from demo_site import buckets
from machinequeue.machines.emulator import Emulator

APP = "far-ridge-prints"
IMAGE = "local"
END_SECONDS = 20
START_SECONDS = 30


class StageError(Exception):
    """A process of the demo did not start, or ended before its time. The text says which, and the end of its log."""


class Stage:
    """A `with` block in which machines can be launched. It leaves no process behind, however it ends."""

    def __init__(self, state_dir: Path, **secrets_of_app: str) -> None:
        self.logs = state_dir / "logs"
        self.emulator = Emulator(
            app=APP,
            token=secrets.token_urlsafe(24),
            images={IMAGE: (settings.BASE_DIR, sys.executable)},
            secrets=_app_secrets() | secrets_of_app,
            state_dir=state_dir / "emulator",
            rate_limits=True,
        )
        self._state_dir = state_dir
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "Stage":
        self.logs.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as exits:
            exits.enter_context(_alone(self._state_dir / "demo.lock"))
            self.emulator.log_path.unlink(missing_ok=True)
            exits.enter_context(self.emulator)
            exits.callback(self._end_children)
            self._start("dispatcher", "mq_dispatcher")
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.close()

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the emulator and of each child, by name."""
        return {"emulator": self.emulator.pid, **{name: child.pid for name, child in self._children.items()}}

    def check(self) -> None:
        """Raises StageError when a process ended that should still be there."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise StageError(f"The {name} ended with status {child.returncode}. Its log ends:\n{self._tail(name)}")

    def serve(self, port: int) -> str:
        """Start the site and return its address, once it answers. A port that is taken is replaced by a free one."""
        port = port if _is_free(port) else _free_port()
        self._start("site", "runserver", "--noreload", f"127.0.0.1:{port}")
        deadline = time.monotonic() + START_SECONDS
        while _is_free(port):
            self.check()
            if time.monotonic() > deadline:
                raise StageError(
                    f"The site did not answer within {START_SECONDS} s. Its log ends:\n{self._tail('site')}"
                )
            time.sleep(0.1)
        return f"http://127.0.0.1:{port}/"

    def _start(self, name: str, *command: str) -> None:
        environment = {
            **os.environ,
            "SECRET_KEY": settings.SECRET_KEY,
            "FLY_API_HOSTNAME": self.emulator.url,
            "FLY_APP_NAME": APP,
            "FLY_API_TOKEN": self.emulator.token,
            "FLY_IMAGE_REF": IMAGE,
            "PYTHONUNBUFFERED": "1",
        }
        with (self.logs / f"{name}.log").open("wb") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", "demo_site.tether", *command],
                cwd=settings.BASE_DIR,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the demo, which ends them in order
            )

    def _end_children(self) -> None:
        for child in self._children.values():
            child.send_signal(signal.SIGTERM)
        for child in self._children.values():
            try:
                child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            if child.stdin is not None:
                child.stdin.close()

    def _tail(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")[-2000:]


def _app_secrets() -> dict[str, str]:
    """What the app's machines get to know: database, places of files and backups, the key. No Redis and no token."""
    given = {name: os.environ[name] for name in ("DATABASE_URL", *buckets.VARIABLES) if os.environ.get(name)}
    return {
        **given,
        "DEMO_STATE_DIR": str(settings.STATE_DIR),
        "DJANGO_SETTINGS_MODULE": "demo_site.settings",
        "SECRET_KEY": settings.SECRET_KEY,
    }


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"Another demo is running in {path.parent}. End it, or set DEMO_STATE_DIR to another folder."
            ) from None
        yield


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0
