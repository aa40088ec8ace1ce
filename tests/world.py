"""A small world for tests: the Machines API on loopback, dispatchers, and machines that run the workshop's tasks.

Everything is a real process and speaks real HTTP; the rows are in the database of the tests.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from django.apps import apps
from django.db import connection, connections
from django.test import override_settings

from machinequeue import wakeups
from machinequeue.machines.emulator import Emulator
from machinequeue.models import Dispatcher, Machine, TaskRun
from tests.ports import free_port
from tests.waiting import until

WORKSHOP = Path(__file__).parent / "workshop"
APP, IMAGE, TOKEN = "workshop", "local", "workshop-token-8d1f"
OLD_IMAGE = "workshop:old"
END_SECONDS = 60


def database_url() -> str:
    """The database of these tests as a URL, for the processes of the world."""
    known = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite://{known['NAME']}"
    password = f":{quote(known['PASSWORD'], safe='')}" if known["PASSWORD"] else ""
    return f"postgresql://{known['USER']}{password}@{known['HOST']}:{known['PORT'] or 5432}/{known['NAME']}"


@dataclass
class Process:
    """A process of the world, and what it said."""

    popen: "subprocess.Popen[bytes]"
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it; its exit code. A process that does not end in time is killed, and that is an error."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise AssertionError(f"It did not end within {END_SECONDS} s of signal {number}: {self.said}") from None


@dataclass
class World:
    """Where tests enqueue and machines execute."""

    root: Path
    redis_url: str
    url: str = field(default_factory=database_url)
    """The database of dispatchers and machines."""
    idle_seconds: float = 0.0
    """How long machines of the default queue wait for more work."""
    more: dict[str, str] = field(default_factory=dict)
    """More environment of every process, machines too."""
    emulator: Emulator = field(init=False)
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state_dir = self.root / "state"
        self.emulator = Emulator(
            app=APP,
            token=TOKEN,
            images=dict.fromkeys((IMAGE, OLD_IMAGE), (WORKSHOP, sys.executable)),
            secrets={
                "DATABASE_URL": self.url,
                "DJANGO_SETTINGS_MODULE": "tests.workshop.settings",
                "FLY_API_TOKEN": TOKEN,
                "WORKSHOP_IDLE": str(self.idle_seconds),
                "SHOP_SECRET": "a secret of the app",
                **self.more,
            },
            env={"PATH": os.environ["PATH"]},
            state_dir=self.root / "emulator",
            port=free_port(),  # which nobody else gets while it is down
        )

    def environment(self, **changes: str) -> dict[str, str]:
        """What a dispatcher, or another command of the workshop, needs to know."""
        base = {
            "PATH": os.environ["PATH"],
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "tests.workshop.settings",
            "DATABASE_URL": self.url,
            "WORKSHOP_STATE": str(self.state_dir),
            "REDIS_URL": self.redis_url,
            "FLY_APP_NAME": APP,
            "FLY_API_TOKEN": TOKEN,
            "FLY_API_HOSTNAME": self.emulator.url,
            "FLY_IMAGE_REF": IMAGE,
            **self.more,
        }
        return {name: value for name, value in {**base, **changes}.items() if value}

    def command(self, *words: str, **changes: str) -> Process:
        """Start a command of the workshop's manage.py."""
        log = self.root / f"{words[0]}-{len(self.processes)}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [sys.executable, "manage.py", *words],
                cwd=WORKSHOP,
                env=self.environment(**changes),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        process = Process(popen, log)
        self.processes.append(process)
        return process

    def dispatcher(self, **changes: str) -> Process:
        """Start a dispatcher, and wait until it serves."""
        process = self.command("mq_dispatcher", **changes)
        until(
            lambda: process.popen.poll() is not None or "dispatcher.started" in process.said, 60, lambda: process.said
        )
        assert process.popen.poll() is None, process.said
        return process

    def end_dispatchers(self) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                assert process.end() == 0, process.said

    # What there is --------------------------------------------------------------------------------------------------

    def machine_processes(self) -> list[psutil.Process]:
        """Every process that belongs to a machine of this world, known by its environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if environment.get("MACHINEQUEUE_MACHINE") and environment.get("DATABASE_URL") == self.url:
                    found.append(process)
        return found

    def said(self) -> str:
        """The ends of all logs, for a failed wait."""
        logs = [f"--- {each.log.name}\n{each.said[-3000:]}" for each in self.processes]
        machines = sorted((self.emulator.state_dir / "logs").glob("*.log"), key=lambda file: file.stat().st_mtime)
        logs += [f"--- {each.stem}\n{each.read_text(errors='replace')[-2000:]}" for each in machines[-5:]]
        return "\n".join(logs)

    def finish(self, *results: Any, seconds: float = 60) -> None:
        """Wait until these runs have finished."""
        for result in results:
            try:
                result.wait(timeout=seconds)
            except TimeoutError as error:
                raise AssertionError(f"{error}\n{self.said()}") from None

    def all_gone(self, seconds: float = 60) -> None:
        """Wait until every machine is gone, by its row, by the API and by the table of processes."""
        until(lambda: not Machine.objects.exclude(status="gone").exists(), seconds, self.said)
        until(lambda: all(each.state == "destroyed" for each in self.emulator.machines()), seconds, self.said)
        until(lambda: not self.machine_processes(), seconds, self.machine_processes)


@contextlib.contextmanager
def world(
    root: Path, redis_url: str, idle_seconds: float = 0.0, url: str = "", more: dict[str, str] | None = None
) -> Iterator[World]:
    """A world that ends with the block, leaves no process and no row. `url` is another way to the database."""
    with contextlib.ExitStack() as exits:
        exits.callback(_forget)
        made = World(root, redis_url, url or database_url(), idle_seconds, more or {})
        settings = {"STATE_DIR": str(made.state_dir), "REDIS_URL": redis_url}
        exits.enter_context(override_settings(MACHINEQUEUE=settings))
        forget_wakeups()
        exits.enter_context(made.emulator)
        yield made
        made.end_dispatchers()


def _forget() -> None:
    forget_wakeups()
    for model in apps.get_app_config("machinequeue").get_models():
        if model is not TaskRun and model is not Dispatcher:
            model._default_manager.all().delete()
    TaskRun.objects.all().delete()
    Dispatcher.objects.all().delete()
    connections.close_all()


def forget_wakeups() -> None:
    if wakeups._sender.cache_info().currsize:
        send = wakeups._sender()
        huey = next(cell.cell_contents for cell in send.__closure__ if hasattr(cell.cell_contents, "storage"))  # type: ignore[union-attr]
        huey.storage.close()
    wakeups._sender.cache_clear()
    wakeups._breaker.closed_at = 0.0
