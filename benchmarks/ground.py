"""What the measurements stand on: databases, the emulator, a dispatcher, workers; all of it gone at the end."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from benchmarks import servers
from machinequeue.machines.emulator.process import Emulator

PROJECT = Path(__file__).parent / "project"
TOKEN = "benchmark-token"
IMAGE, APP = "bench:latest", "bench"
DEADLINE_SECONDS = 60.0
PAUSE_SECONDS = 0.001


@dataclass
class Ground:
    """The servers' addresses and the processes of one run."""

    database_url: str
    redis_url: str
    results_url: str
    folder: Path
    environment: dict[str, str]
    """Of the project's own processes; a machine's has no more of it than the project needs."""
    emulator: Emulator
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str, name: str) -> subprocess.Popen[bytes]:
        """Start a process of the project in the background; its output goes to a file of that name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=PROJECT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_dispatcher(self) -> None:
        """Start it, and wait until it serves."""
        self.start("manage.py", "mq_dispatcher", name="dispatcher")
        wait_for(lambda: "serves app" in self.said("dispatcher"), lambda: self.said("dispatcher"))

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a process that `start` started, and all below it."""
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            pass  # its group is killed below
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process in self.processes:
            self.processes.remove(process)

    def said(self, name: str) -> str:
        """The end of what a process printed."""
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace")[-800:] if log.exists() else ""

    def machine_environment(self) -> dict[str, str]:
        """What a machine of the emulator has, for a process that is compared with one."""
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "DJANGO_SETTINGS_MODULE": "bench_site.settings",
            "DATABASE_URL": self.database_url,
        }


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """Servers and emulator, running; Django is set up in this process too."""
    with contextlib.ExitStack() as stack:
        database_url = stack.enter_context(servers.database())
        redis_url = stack.enter_context(servers.redis_database())
        results_url = stack.enter_context(servers.redis_database())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mq-bench-")))
        emulator = stack.enter_context(
            Emulator(
                app=APP,
                token=TOKEN,
                images={IMAGE: (PROJECT, sys.executable)},
                secrets={"DATABASE_URL": database_url},
                state_dir=folder / "emulator",
            )
        )
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment = {
            **inherited,
            "DJANGO_SETTINGS_MODULE": "bench_site.settings",
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "BENCH_RESULTS_URL": results_url,
            "BENCH_PEERS": "1",
            "FLY_APP_NAME": APP,
            "FLY_API_TOKEN": TOKEN,
            "FLY_API_HOSTNAME": emulator.url,
            "FLY_IMAGE_REF": IMAGE,
            "MACHINEQUEUE_STATE_DIR": str(folder / "state"),
        }
        made = Ground(database_url, redis_url, results_url, folder, environment, emulator)
        _set_django_up(environment)
        stack.callback(lambda: [made.stop(process) for process in list(made.processes)])
        yield made
        _close_connections()


def _set_django_up(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.path.insert(0, str(PROJECT))
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)


def _close_connections() -> None:
    from django.db import connections

    connections.close_all()


def wait_for(ready: Callable[[], object], why: Callable[[], str], *, pause: float = PAUSE_SECONDS) -> None:
    """Until it is; after a minute RuntimeError with the reason."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"benchmarks: waited for {DEADLINE_SECONDS:g} s. {why()}")
        time.sleep(pause)


def connect(made: Ground) -> psycopg.Connection[tuple[object, ...]]:
    """A connection beside Django's, that commits each statement."""
    return psycopg.connect(made.database_url, autocommit=True)
