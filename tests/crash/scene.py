"""A world in which processes are killed: it starts dispatchers again, keeps the ledger, and asks the checker."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from django.apps import apps
from django.db import connection

from machinequeue.models import Machine, TaskRun
from tests.crash import checker
from tests.crash.checker import Verdict
from tests.waiting import TooLate, until
from tests.workshop import ledger
from tests.world import APP, TOKEN, Process, World, database_url, forget_wakeups


def environment(root: Path, settings: dict[str, Any] | None = None) -> dict[str, str]:
    """What every process of a scene knows; `settings` are of MACHINEQUEUE, beside those of the workshop."""
    (root / "faults").mkdir()
    return {
        "WORKSHOP_LEDGER": str(root / "ledger.jsonl"),
        "WORKSHOP_FAULTS": str(root / "faults"),
        "WORKSHOP_SETTINGS": json.dumps(settings or {}),
    }


@dataclass
class Scene:
    """A world, its ledger, and the dispatchers that a supervisor would keep running."""

    world: World
    crew: list[Process] = field(default_factory=list)

    @property
    def ledger_file(self) -> Path:
        return Path(self.world.more["WORKSHOP_LEDGER"])

    @property
    def faults(self) -> Path:
        return Path(self.world.more["WORKSHOP_FAULTS"])

    # Dispatchers ----------------------------------------------------------------------------------------------------

    def start_dispatchers(self, count: int = 1) -> None:
        while len(self.crew) < count:
            self.crew.append(self.world.command("mq_dispatcher"))

    def keep_dispatchers(self) -> bool:
        """Start again those that ended; always True."""
        for place, process in enumerate(self.crew):
            if process.popen.poll() is not None:
                self.crew[place] = self.world.command("mq_dispatcher")
        return True

    def end_dispatchers(self) -> None:
        for process in self.crew:
            process.end(signal.SIGKILL)
        self.crew.clear()

    # Faults ---------------------------------------------------------------------------------------------------------

    def arm(self, point: str, kind: str = "kill") -> None:
        """Have the first process suffer that reaches the point (see tests/workshop/faults.py)."""
        draft = self.faults / f".{point}"
        draft.write_text(kind)
        draft.rename(self.faults / point)

    def fired(self, point: str) -> int:
        """The process that suffered at the point; 0 while none has."""
        marker = self.faults / f"{point}.fired"
        text = marker.read_text() if marker.exists() else ""
        return int(text) if text.isdigit() else 0

    # Runs -----------------------------------------------------------------------------------------------------------

    def enqueue(self, task: Any, *args: Any, ends: tuple[str, ...] = ledger.SUCCESS, **kwargs: Any) -> Any:
        """Enqueue a run, and note in the ledger that it is committed."""
        result = task.enqueue(*args, **kwargs)
        self.note(result, ends)
        return result

    def note(self, result: Any, ends: tuple[str, ...] = ledger.SUCCESS) -> None:
        ledger.note("enqueued", result.id, to=str(self.ledger_file), ends=ends)

    def lines(self, what: str, result: Any = None) -> list[checker.Line]:
        """The lines of one kind, of one run or of all."""
        lines = [line for line in checker.read_ledger(self.ledger_file) if line.what == what]
        return [line for line in lines if result is None or line.run == result.id]

    def started(self, result: Any, times: int = 1) -> list[checker.Line]:
        """Wait until the run was begun so often; the lines of it."""
        return self.wait(lambda: len(found := self.lines("start", result)) >= times and found, "it never started")

    # Waiting, with somebody who starts dispatchers again ------------------------------------------------------------

    def wait[T](self, condition: Callable[[], T], what: str = "", seconds: float = 90) -> T:
        """The first true value of the condition, while dispatchers that die are started again."""
        return until(lambda: self.keep_dispatchers() and condition(), seconds, lambda: f"{what}\n{self.world.said()}")

    def drained(self, seconds: float = 90) -> Verdict:
        """Wait until there is nothing more to do, and ask the checker."""

        def quiet() -> bool:
            if self.world.url == database_url():
                busy = TaskRun.objects.exclude(status__in=checker.FINISHED).exists()
                return not busy and not Machine.objects.exclude(status="gone").exists()
            rows = checker.read_rows(self.world.url)  # slower: it connects each time
            ended = all(run["status"] in checker.FINISHED for run in rows.runs)
            return ended and all(machine["status"] == "gone" for machine in rows.machines)

        try:
            self.wait(quiet, seconds=seconds)
            self.wait(lambda: not self.verdict().left_behind, seconds=60)
        except TooLate as error:
            raise AssertionError(f"{self.verdict()}\n{error}") from None
        return self.verdict()

    def verdict(self) -> Verdict:
        """What the checker says now."""
        return checker.judge(
            checker.read_rows(self.world.url),
            checker.read_ledger(self.ledger_file),
            checker.read_machines(self.world.emulator.url, APP, TOKEN),
            checker.read_processes(self.world.url),
        )

    # Machines -------------------------------------------------------------------------------------------------------

    def machine(self, result: Any) -> Machine:
        """The machine of the run's newest attempt."""
        return Machine.objects.filter(attempts__run_id=result.id).order_by("-attempts__epoch")[0]

    def supervisor(self, machine: Machine) -> psutil.Process:
        """The first process that the machine started: the one whose parent does not belong to the machine."""
        mine = [each for each in self.world.machine_processes() if _belongs(each, machine.name)]
        pids = {each.pid for each in mine}
        [first] = [each for each in mine if each.ppid() not in pids]
        return first

    # Between tests --------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Leave an empty world to the next test, whatever this one left behind."""
        for file in self.faults.iterdir():
            file.unlink()
        self.world.emulator.faults.clear()
        for process in self.world.machine_processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with self.world.emulator.client() as client:
            for machine in self.world.emulator.machines():
                if machine.state != "destroyed":
                    client.destroy(machine.id, force=True)
        for model in sorted(apps.get_app_config("machinequeue").get_models(), key=lambda model: model is TaskRun):
            if model._meta.model_name not in ("dispatcher", "release"):
                model._default_manager.all().delete()
        self.ledger_file.unlink(missing_ok=True)
        forget_wakeups()  # and that Redis was away

    def let_pass(self, seconds: float) -> None:
        """Make reserved machines so much older: what follows an abandoned reservation waits for a minute and more."""
        with connection.cursor() as cursor:
            for column in ("reserved_at", "requested_at"):
                moved = (
                    f"{column} - INTERVAL '{seconds} seconds'"
                    if connection.vendor == "postgresql"
                    else f"STRFTIME('%Y-%m-%d %H:%M:%f', {column}, '-{seconds} seconds')"
                )
                cursor.execute(f"UPDATE machinequeue_machine SET {column} = {moved} WHERE status = 'reserved'")


def _belongs(process: psutil.Process, name: str) -> bool:
    try:
        return process.environ().get("MACHINEQUEUE_MACHINE") == name
    except psutil.Error:
        return False


def alive(pid: int) -> bool:
    """Whether the process runs: one that ended and was not waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
