"""Ask questions in bounded time: who does not answer is said to be slow, and keeps nobody from being heard.

Python ends no thread from outside. A question that hangs keeps its thread (a daemon), and is not asked again for a
minute, then for two, four, ...: a connection that nobody answers any more may hang for hours after the server is back.
So it costs few threads per process, however often health is asked for.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from django.db import connections

logger = logging.getLogger("machinequeue.health")

AT_ONCE = 4
"""Questions that are asked at the same time; each thread may open a database connection, closed at the end."""

AGAIN_SECONDS = 60.0
"""After so long a question that hangs is asked again; after twice as long when that hangs too, and so on."""

_hanging: dict[str, list[float]] = {}
"""When the questions that hang were asked, on the monotonic clock; the oldest first."""
_hanging_lock = threading.Lock()


@dataclass(frozen=True)
class Question[T]:
    """Something to be asked, and how long its answer is waited for."""

    ask: Callable[[], T]
    seconds: float


@dataclass(frozen=True)
class Heard[T]:
    """What came of a question: its answer, or that there was none in time (None), or what it raised."""

    answer: T | None
    seconds: float
    error: BaseException | None = None


def ask_all[T](questions: Mapping[str, Question[T]]) -> dict[str, Heard[T]]:
    """The answers by name. A name stands for the same question in every call of this process."""
    heard = _Round(questions).wait()
    return {name: heard[name] for name in questions}


def ask[T](name: str, question: Callable[[], T], seconds: float) -> Heard[T]:
    """One answer, waited for at most so long."""
    return ask_all({name: Question(question, seconds)})[name]


class _Round[T]:
    def __init__(self, questions: Mapping[str, Question[T]]) -> None:
        self._questions = questions
        self._changed = threading.Condition()
        self._begun: dict[str, float] = {}
        self._heard: dict[str, Heard[T]] = self._still_hanging()
        self._waiting = deque(name for name in questions if name not in self._heard)
        for _ in range(min(AT_ONCE, len(self._waiting))):
            self._hire()

    def _still_hanging(self) -> dict[str, Heard[T]]:
        now = time.monotonic()
        with _hanging_lock:
            known = {name: _hanging[name] for name in self._questions if name in _hanging}
            return {
                name: Heard(None, now - asked[0])
                for name, asked in known.items()
                if now - asked[-1] < AGAIN_SECONDS * 2 ** (len(asked) - 1)
            }

    def wait(self) -> dict[str, Heard[T]]:
        with self._changed:
            while len(self._heard) < len(self._questions):
                now = time.monotonic()
                open_ends = {name: begin for name, begin in self._begun.items() if name not in self._heard}
                left = {name: begin + self._questions[name].seconds - now for name, begin in open_ends.items()}
                for name in [name for name, seconds in left.items() if seconds <= 0]:
                    self._give_up(name, left.pop(name))
                if len(self._heard) < len(self._questions):
                    self._changed.wait(min(left.values(), default=None))
        return self._heard

    def _give_up(self, name: str, left: float) -> None:
        logger.warning("Health: %s did not answer within %g s.", name, self._questions[name].seconds)
        self._heard[name] = Heard(None, self._questions[name].seconds - left)
        with _hanging_lock:
            _hanging.setdefault(name, []).append(self._begun[name])
        if self._waiting:
            self._hire()  # in place of the one that hangs

    def _hire(self) -> None:
        threading.Thread(target=self._work, name="machinequeue-health", daemon=True).start()

    def _work(self) -> None:
        try:
            while (name := self._take()) is not None:
                if not self._listen(name):
                    return
        finally:
            connections.close_all()

    def _take(self) -> str | None:
        with self._changed:
            if not self._waiting:
                return None
            name = self._waiting.popleft()
            self._begun[name] = time.monotonic()
            self._changed.notify_all()
            return name

    def _listen(self, name: str) -> bool:
        """Hear the answer. False when it came too late, so that another has taken this thread's place."""
        answer: T | None = None
        raised: BaseException | None = None
        try:
            answer = self._questions[name].ask()
        except BaseException as error:  # whatever a question of the site's own raises, sys.exit() too
            raised = error
        with self._changed:
            late = name in self._heard
            if not late:
                self._heard[name] = Heard(answer, time.monotonic() - self._begun[name], raised)
                self._changed.notify_all()
            else:
                with _hanging_lock:
                    _hanging[name].remove(self._begun[name])
                    if not _hanging[name]:
                        del _hanging[name]
        return not late
