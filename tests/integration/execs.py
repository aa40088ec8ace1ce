"""`mq_exec` as a process, with its streams apart."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machinequeue.models import TaskRun
from tests.waiting import until
from tests.world import WORKSHOP, World


@dataclass
class Exec:
    """A `mq_exec` that runs, and what it wrote."""

    popen: "subprocess.Popen[bytes]"
    root: Path

    @property
    def out(self) -> bytes:
        return (self.root / "out").read_bytes()

    @property
    def err(self) -> str:
        return (self.root / "err").read_text()

    def ends(self) -> int:
        return self.popen.wait(60)

    def run(self) -> TaskRun:
        """The run that it enqueued last."""
        until(lambda: "mq_exec: run " in self.err, 60, lambda: self.err)
        return TaskRun.objects.get(pk=self.err.split("mq_exec: run ")[1][:36])


@contextlib.contextmanager
def mq_exec(shop: World, root: Path, *words: str, stdin: int = subprocess.DEVNULL) -> Iterator[Exec]:
    with (root / "out").open("wb") as out, (root / "err").open("wb") as err:
        popen = subprocess.Popen(
            [sys.executable, "manage.py", "mq_exec", *words],
            cwd=WORKSHOP,
            env=shop.environment(FLY_API_TOKEN="", FLY_API_HOSTNAME=""),  # it needs the database only
            stdin=stdin,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        yield Exec(popen, root)
    finally:
        popen.kill()
        popen.wait()


def ended(shop: World, root: Path, *words: str) -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of a `mq_exec` that ends by itself."""
    with mq_exec(shop, root, *words) as running:
        return running.ends(), running.out, running.err
