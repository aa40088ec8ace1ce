"""Chaos: random tasks, random kills, and at the end the question whether anything was lost.

    python -m tests.crash.soak --minutes 10 --seed 7

Dispatchers, machines, hosts, Redis and database connections are killed at random while runs are enqueued. Then the
kills stop, everything drains, and the checker judges. The last line says so; the exit code is 1 when anything is wrong,
and then the ledger and every log are kept.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests import services
from tests.crash import checker

DRAIN_SECONDS = 240
MAX_MACHINES = 5
DISPATCHERS = 3
ENQUEUE_SECONDS = 0.25
"""Between enqueues, on average."""
SETTINGS = {"MAX_MACHINES": MAX_MACHINES, "SILENT_SECONDS": 15, "CHECK_IN_TIMEOUT": 20, "BOOT_TIMEOUT": 120}
WITH_A_POINT = ("dispatcher.", "reconciler.", "runner.", "template.", "task.")
ANSWERS = ("runner.after_check_in", "runner.after_claim", "runner.after_success", "runner.after_failure")


class Soak:
    """What goes on until the time is over."""

    def __init__(self, scene: Any, redis: Any, dice: random.Random, seconds: float, kill_seconds: float) -> None:
        self.scene = scene
        self.redis = redis
        self.dice = dice
        self.seconds = seconds
        self.kill_seconds = kill_seconds
        self.kills: Counter[str] = Counter()
        self.enqueued: Counter[str] = Counter()
        self.cancellable: list[Any] = []

    def run(self) -> None:
        """Enqueue and kill until the time is over."""
        begin = said = time.monotonic()
        enqueue_at = kill_at = begin
        while (now := time.monotonic()) < begin + self.seconds:
            self.scene.keep_dispatchers()
            if now >= enqueue_at:
                self.enqueue()
                enqueue_at = now + self.dice.expovariate(1 / ENQUEUE_SECONDS)
            if now >= kill_at:
                self.kill()
                kill_at = now + self.dice.expovariate(1 / self.kill_seconds)
            if now >= said + 10:
                said = now
                print(f"{now - begin:4.0f} s: {self.so_far()}", flush=True)
            time.sleep(0.02)

    def so_far(self) -> str:
        """What was done."""
        statuses = checker.statuses(checker.read_rows(self.scene.world.url))
        told = " ".join(f"{status}={count}" for status, count in sorted(statuses.items()))
        return f"{told} kills={sum(self.kills.values())}"

    # Tasks ----------------------------------------------------------------------------------------------------------

    def enqueue(self) -> None:
        """One run of a random kind."""
        from tests.workshop import ledger

        kinds: list[tuple[str, int, Callable[[], Any]]] = [
            ("quick", 8, lambda: self.scene.enqueue(ledger.job)),
            ("slow", 4, lambda: self.scene.enqueue(ledger.job, seconds=self.dice.uniform(0.2, 2.0))),
            ("raising", 2, lambda: self.scene.enqueue(ledger.raising, ends=("FAILED",))),
            ("retrying", 2, lambda: self.scene.enqueue(ledger.retrying, self.dice.randint(1, 3))),
            ("allocating", 1, lambda: self.scene.enqueue(ledger.allocating, self.dice.randint(10, 100))),
            ("parent", 2, lambda: self.scene.enqueue(ledger.parent, self.dice.randint(1, 3))),
            ("cancelled", 1, self.enqueue_cancellable),
        ]
        name, _, enqueue = self.dice.choices(kinds, [weight for _, weight, _ in kinds])[0]
        enqueue()
        self.enqueued[name] += 1
        if self.cancellable and self.dice.random() < 0.1:
            self.cancellable.pop(self.dice.randrange(len(self.cancellable))).cancel()

    def enqueue_cancellable(self) -> None:
        from tests.workshop import ledger

        self.cancellable.append(self.scene.enqueue(ledger.job, seconds=600, ends=("CANCELLED",)))

    # Kills ----------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """One fault of a random kind. Not every kind finds a victim."""
        kinds: list[tuple[str, int, Callable[[], bool]]] = [
            ("dispatcher", 4, lambda: self.end_dispatcher(signal.SIGKILL)),
            ("dispatcher's end", 2, lambda: self.end_dispatcher(signal.SIGTERM)),
            ("machine's init", 2, lambda: self.in_machine(self.init, signal.SIGKILL)),
            ("supervisor", 2, lambda: self.in_machine(self.supervisor, signal.SIGKILL)),
            ("supervisor's end", 1, lambda: self.in_machine(self.supervisor, signal.SIGTERM)),
            ("frozen supervisor", 1, lambda: self.in_machine(self.supervisor, signal.SIGSTOP)),
            ("process below", 2, lambda: self.in_machine(self.below, signal.SIGKILL)),
            ("host", 1, self.lose_host),
            ("point", 4, self.arm_point),
            ("redis", 1, self.end_redis),
            ("redis flushed", 1, self.flush_redis),
            ("connections", 1, self.end_connections),
            ("answer", 2, self.lose_answer),
        ]
        name, _, kill = self.dice.choices(kinds, [weight for _, weight, _ in kinds])[0]
        with contextlib.suppress(psutil.NoSuchProcess):
            self.kills[name] += bool(kill())

    def end_dispatcher(self, number: int) -> bool:
        process = self.dice.choice(self.scene.crew)
        process.popen.send_signal(number)
        return True

    def in_machine(self, choose: Callable[[list[psutil.Process]], psutil.Process | None], number: int) -> bool:
        """Signal a process of a random machine."""
        machines: dict[str, list[psutil.Process]] = {}
        for process in self.scene.world.machine_processes():
            with contextlib.suppress(psutil.Error):
                machines.setdefault(process.environ()["MACHINEQUEUE_MACHINE"], []).append(process)
        if not machines:
            return False
        victim = choose(machines[self.dice.choice(sorted(machines))])
        if victim is not None:
            victim.send_signal(number)
        return victim is not None

    def supervisor(self, processes: list[psutil.Process]) -> psutil.Process | None:
        """The first process of the machine."""
        pids = {process.pid for process in processes}
        return next((process for process in processes if process.ppid() not in pids), None)

    def init(self, processes: list[psutil.Process]) -> psutil.Process | None:
        """What the host started for the machine."""
        first = self.supervisor(processes)
        parent = first.parent() if first is not None else None
        return parent if parent is not None and parent.name() == "mq-init" else None

    def below(self, processes: list[psutil.Process]) -> psutil.Process | None:
        """The template, or a task process."""
        first = self.supervisor(processes)
        others = [process for process in processes if process != first]
        return self.dice.choice(others) if others else None

    def lose_host(self) -> bool:
        """A machine's host is gone, and comes back after a while."""
        running = [each for each in self.scene.world.emulator.machines() if each.state == "started"]
        if not running:
            return False
        self.scene.world.emulator.faults.vanish(self.dice.choice(running).id, seconds=self.dice.uniform(1, 10))
        return True

    def arm_point(self) -> bool:
        """Somebody dies at a point, when it is reached."""
        from tests.workshop import faults

        if self.dice.random() < 0.3:
            self.scene.arm(self.dice.choice(ANSWERS), "lose")
        else:
            self.scene.arm(self.dice.choice([*faults.DISPATCHER, *faults.MACHINE]))
        return True

    def end_redis(self) -> bool:
        self.redis.end()
        self.redis.start()
        return True

    def flush_redis(self) -> bool:
        self.redis.flush()
        return True

    def end_connections(self) -> bool:
        """Every connection but that of this process, so that it knows what it has committed."""
        from django.db import connection

        from tests.crash import servers

        connection.ensure_connection()
        return bool(servers.end_connections(self.scene.world.url, but=connection.connection.info.backend_pid))

    def lose_answer(self) -> bool:
        self.scene.world.emulator.faults.lose_answer("create")
        return True

    # The end --------------------------------------------------------------------------------------------------------

    def calm(self) -> None:
        """No more faults, nothing frozen for ever that only a person could thaw, nobody waiting for a cancel."""
        for file in self.scene.faults.iterdir():
            if not file.name.endswith(".fired"):
                file.unlink(missing_ok=True)
        self.scene.world.emulator.faults.clear()
        self.redis.start()
        for result in self.cancellable:
            result.cancel()

    def drained(self, seconds: float) -> checker.Verdict:
        """Wait until nothing is left to do, and judge."""
        deadline, look_at = time.monotonic() + seconds, 0.0
        most = checker.most_at_once(checker.read_rows(self.scene.world.url))[""]  # before reservations are made older
        verdict = self.scene.verdict()
        while time.monotonic() < deadline and (verdict.lost or verdict.left_behind):
            self.scene.keep_dispatchers()
            for result in self.cancellable:
                result.cancel()  # one that was READY between two attempts, or lost the request
            if time.monotonic() > look_at:
                look_at = time.monotonic() + 10
                self.scene.let_pass(100)
                print(f"draining: {self.so_far()}; {verdict.line}", flush=True)
            time.sleep(0.5)
            verdict = self.scene.verdict()
        if most > MAX_MACHINES:
            verdict.left_behind.append(f"{most} machines at once, and {MAX_MACHINES} are allowed")
        return verdict


@contextlib.contextmanager
def staged(root: Path) -> Iterator[tuple[Any, Any]]:
    """A scene with a database and a Redis of its own: (scene, redis)."""
    from tests.crash import servers

    with services.postgres_database() as url, servers.Redis() as redis:
        os.environ |= {
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": "tests.workshop.settings",
            "WORKSHOP_STATE": str(root / "state"),
            "WORKSHOP_IDLE": "2",
        }
        import django

        django.setup()
        from tests.crash.scene import Scene, environment
        from tests.world import WORKSHOP, world

        subprocess.run([sys.executable, "manage.py", "migrate", "--verbosity", "0"], cwd=WORKSHOP, check=True)
        more = {**environment(root), "WORKSHOP_SETTINGS": json.dumps(SETTINGS), "WORKSHOP_IDLE": "2"}
        with world(root, redis.url, idle_seconds=2, more=more) as made:
            scene = Scene(made)
            try:
                yield scene, redis
            finally:
                scene.end_dispatchers()


def soak(root: Path, seed: int, seconds: float, kill_seconds: float, drain_seconds: float) -> bool:
    """Do it all; whether nothing is wrong."""
    with staged(root) as (scene, redis):
        scene.start_dispatchers(DISPATCHERS)
        chaos = Soak(scene, redis, random.Random(seed), seconds, kill_seconds)
        chaos.run()
        chaos.calm()
        verdict = chaos.drained(drain_seconds)
        print(f"enqueued: {dict(chaos.enqueued)}")
        print(f"kills: {dict(chaos.kills)}")
        print(f"executions={verdict.executions} repeated={verdict.repeated} given_up={verdict.given_up}")
        if not verdict.good:
            print(f"{verdict}\nThe ledger and the logs are in {root}.\n{scene.world.said()}")
        print(f"{verdict.line} kills={sum(chaos.kills.values())}", flush=True)
        return verdict.good


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill at random, and see that nothing is lost.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kill-seconds", type=float, default=1.0, help="between two kills, on average")
    parser.add_argument("--drain-seconds", type=float, default=DRAIN_SECONDS)
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="machinequeue-soak-"))
    print(f"seed {asked.seed}, {asked.minutes:g} minutes, in {root}", flush=True)
    good = soak(root, asked.seed, asked.minutes * 60, asked.kill_seconds, asked.drain_seconds)
    if good:
        shutil.rmtree(root, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
