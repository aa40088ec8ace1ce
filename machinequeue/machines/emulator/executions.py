"""A further command in a running machine: its words go in by a file, its output comes back by pipes."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import IO, Any

from machinequeue.machines.emulator.answers import execution_timeout

CHUNK = 65536
KEPT_BYTES = 1024 * 1024
PIPE_READS = 64


@dataclass(frozen=True, slots=True)
class Execution:
    """`outcome` becomes the report of the init: exit and signal (-1 for none)."""

    number: int
    outcome: asyncio.Future[Mapping[str, Any]]


Send = Callable[[list[int]], Execution]


async def execute(send: Send, end: Callable[[int], None], argv: list[str], stdin: str, seconds: float) -> Any:
    """Run `argv` and answer as the exec call does. `send` hands descriptors to the init, `end` kills an execution.

    Of stdout and stderr the first MiB each is kept. Raises a Refusal when it takes too long.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(_spooled(text)) for text in (json.dumps(argv), stdin)]
        captures = [stack.enter_context(closing(_Capture())) for _ in range(2)]
        execution = send([*(file.fileno() for file in files), *(capture.theirs for capture in captures)])
        for capture in captures:
            capture.begin()
        try:
            report = await asyncio.wait_for(execution.outcome, seconds)
        except TimeoutError:
            end(execution.number)
            raise execution_timeout(seconds) from None
        stdout, stderr = (capture.text() for capture in captures)
        signal = max(report["signal"], 0)
        return {"exit_code": report["exit"], "exit_signal": signal, "stdout": stdout, "stderr": stderr}


def _spooled(text: str) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    file.write(text.encode())
    file.seek(0)
    return file


class _Capture:
    """A pipe whose reading end fills a bounded buffer and never holds the writer up."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        os.close(self.theirs)
        self.theirs = -1
        self._loop.add_reader(self._ours, self._read)

    def text(self) -> str:
        """What came until now; a process left behind may still hold the other end, and is not waited for."""
        for _ in range(PIPE_READS):
            if not self._read():
                break
        return self._kept.decode(errors="replace")

    def close(self) -> None:
        self._loop.remove_reader(self._ours)
        for descriptor in (self._ours, self.theirs):
            if descriptor >= 0:
                os.close(descriptor)

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, CHUNK)
        except BlockingIOError:
            return False
        self._kept += data[: KEPT_BYTES - len(self._kept)]
        if not data:
            self._loop.remove_reader(self._ours)
        return bool(data)
