"""Follow a run until it has finished: why it waits, which machine it gets, what its command writes, how it ended.

Reads rows only, so it works wherever the database is reached, and says so when no dispatcher is there.
"""

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import BinaryIO, Self

from machinequeue.lifecycle import FINISHED, AttemptStatus, RunStatus
from machinequeue.records import Attempt, TaskRun, runs, streams
from machinequeue.records.streams import Stored
from machinequeue.runner.persist import persist

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 0.25

INCOMPLETE = 74
"""The command succeeded, and what came of its output is not all that it wrote."""
CANCELLED = 121
LOST = 122
"""Given up after its machines were lost; or the run was deleted."""
OUT_OF_MEMORY = 123
TIMED_OUT = 124
NEVER_STARTED = 125
"""Expired, or refused by Fly."""
LEFT = 130
"""Left by Ctrl-C; the run goes on."""
NOBODY_READS = 141
"""Stdout was closed; the run goes on."""

_CODES: dict[str, int] = {
    AttemptStatus.TIMED_OUT: TIMED_OUT,
    AttemptStatus.OUT_OF_MEMORY: OUT_OF_MEMORY,
    AttemptStatus.LOST: LOST,
    AttemptStatus.INTERRUPTED: LOST,
    AttemptStatus.CANCELLED: CANCELLED,
}


class Interrupts:
    """Notes Ctrl-C while the block lasts, instead of ending the process."""

    def __init__(self) -> None:
        self._noted = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True

    def came(self) -> bool:
        """Whether one came since this was asked last."""
        noted, self._noted = self._noted, False
        return noted


def ask(question: str) -> bool | None:
    """Yes or no, from a terminal; None for another Ctrl-C. Where nobody can be asked it is yes."""
    if not sys.stdin or not sys.stdin.isatty():
        return True
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.stderr.write(f"\n{question} [y/N; Ctrl-C: leave it running] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return None
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class Follower:
    """`follow()` writes a run's streams to `out` and `err`, says what happens, and returns an exit code."""

    run_id: uuid.UUID
    out: BinaryIO
    err: BinaryIO
    say: Callable[[str], None]
    asked: Callable[[str], bool | None] = ask
    """Asks before the run is cancelled; see `ask`."""
    _number: int = 0
    _epoch: int = 0
    _told: str = ""
    _placed: int = 0
    """The last attempt of which it was said where it runs."""
    _positions: dict[str, int] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _cancels: bool = False
    """Whether the run was asked to stop, by way of this."""
    _faults: list[str] = field(default_factory=list)
    """Why what was written is not exactly what the command wrote."""

    def follow(self) -> int:
        """Until the run has finished, or Ctrl-C leaves it. Raises OperationalError when the database stays away."""
        pause = SHORTEST_PAUSE
        with Interrupts() as interrupts:
            while True:
                run = persist(lambda: runs.get(self.run_id))  # before the streams: when it has finished, they are whole
                if run is None:
                    self.say("the run was deleted")
                    return LOST
                try:
                    news = self._copy_all()
                except BrokenPipeError:
                    return self._nobody_reads()
                if run.status in FINISHED:
                    return self._end(run)
                news = self._tell(run) or news
                if interrupts.came() and self._interrupted():
                    return LEFT
                time.sleep(pause)
                pause = SHORTEST_PAUSE if news else min(pause * 1.3, LONGEST_PAUSE)

    # What it writes -------------------------------------------------------------------------------------------------

    def _copy_all(self) -> bool:
        news = False
        while found := persist(lambda: streams.after(self.run_id, self._number)):
            for stored in found:
                self._copy(stored)
            news = True
        return news

    def _copy(self, stored: Stored) -> None:
        self._number = stored.number
        if stored.epoch != self._epoch:
            self._begin_attempt(stored.epoch)
        piece = stored.piece
        missing = piece.position - self._positions.get(piece.stream, 0)
        if missing > 0:
            self._faults.append(f"{missing} bytes of {piece.stream} were dropped")
        self._positions[piece.stream] = piece.position + len(piece.data)
        if piece.ended:
            self._ended.add(piece.stream)
        target = self.out if piece.stream == "stdout" else self.err
        target.write(piece.data)
        target.flush()

    def _begin_attempt(self, epoch: int) -> None:
        if self._positions.get("stdout"):
            self._faults.append(f"stdout holds what attempt {self._epoch} wrote, too")
            self.say(f"attempt {epoch} begins; what stdout shows so far is of attempt {self._epoch}")
        self._epoch = epoch
        self._positions.clear()
        self._ended.clear()

    def _nobody_reads(self) -> int:
        self.say(f"nobody reads stdout any more; run {self.run_id} goes on")
        # Python flushes stdout when it exits, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return NOBODY_READS

    # What happens ---------------------------------------------------------------------------------------------------

    def _tell(self, run: TaskRun) -> bool:
        sentence = persist(lambda: runs.why(run))
        if run.status == RunStatus.RUNNING:
            attempt = self._attempt(run)
            machine = attempt.machine if attempt is not None else None
            if machine is not None and run.cancel_requested_at is None:
                self._placed = run.epoch
                sentence = f"attempt {run.epoch} runs on machine {machine.name}{_details(machine)}"
        if sentence == self._told:
            return False
        self._told = sentence
        self.say(sentence)
        return True

    def _attempt(self, run: TaskRun) -> Attempt | None:
        found = [each for each in persist(lambda: runs.attempts(run.pk)) if each.epoch == run.epoch]
        return found[0] if found else None

    def _interrupted(self) -> bool:
        """After Ctrl-C: whether to leave."""
        answer = None if self._cancels else self.asked(f"Cancel run {self.run_id}?")
        if answer is None:
            self.say(f"left; run {self.run_id} goes on")
            return True
        if not answer:
            self.say("not cancelled; following on")
        elif persist(lambda: runs.cancel(self.run_id)):
            self._cancels = True
            self.say("asked to stop; Ctrl-C again leaves without waiting for it")
        return False

    # How it ends ----------------------------------------------------------------------------------------------------

    def _end(self, run: TaskRun) -> int:
        attempt = self._attempt(run)
        if attempt is not None:
            self._show_plain(run)
            if attempt.machine is not None and self._placed < attempt.epoch:  # it was too quick to be seen running
                self.say(f"attempt {attempt.epoch} ran on machine {attempt.machine.name}{_details(attempt.machine)}")
        code = _code(run, attempt)
        took = f" after {attempt.seconds:.1f} s" if attempt is not None and attempt.seconds is not None else ""
        how = f": {run.reason}" if run.reason else ""
        self.say(f"{RunStatus(run.status).label.lower()}{took}, exit code {code}{how}")
        succeeded = run.status == RunStatus.SUCCESSFUL
        if succeeded and self._positions and len(self._ended) < 2:
            self._faults.append("the end of the output is missing")
        for fault in self._faults:
            self.say(f"OUTPUT IS NOT COMPLETE: {fault}")
        return INCOMPLETE if self._faults and succeeded else code

    def _show_plain(self, run: TaskRun) -> None:
        """A run that is no command has no streams: what it printed, as it was kept."""
        if self._number:
            return
        self.out.write(persist(lambda: runs.output(run.pk)).encode())
        self.out.flush()


def _details(machine: object) -> str:
    words = [getattr(machine, "fly_id", ""), getattr(machine, "region", "")]
    asked, up = getattr(machine, "requested_at", None), getattr(machine, "booted_at", None)
    if asked and up and up >= asked:
        words.append(f"up {(up - asked).total_seconds():.1f} s after its launch")
    shown = ", ".join(word for word in words if word)
    return f" ({shown})" if shown else ""


def _code(run: TaskRun, attempt: Attempt | None) -> int:
    if run.status == RunStatus.SUCCESSFUL:
        return 0
    if run.status == RunStatus.CANCELLED:
        return CANCELLED
    if attempt is None or run.status == RunStatus.EXPIRED:
        return NEVER_STARTED
    if attempt.status in _CODES:
        return _CODES[attempt.status]
    return attempt.exit_code or 1
