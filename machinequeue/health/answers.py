"""What a question is answered with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from django.utils.translation import pgettext


class Status(StrEnum):
    """From good to bad."""

    OK = "ok"
    WARNING = "warning"
    """Degraded: something is slower, older or nearer to an end than it should be, and work goes on."""
    FAILURE = "failure"
    """Work does not go on, or what it rests on is missing."""


@dataclass(frozen=True)
class Sentence:
    """A translatable text with values, which is put together in the language of whoever reads it."""

    text: Any = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.text % self.values) if self.values else str(self.text)


@dataclass(frozen=True)
class Answer:
    """The answer to one question."""

    status: Status
    sentence: Sentence
    remedy: Sentence = field(default_factory=Sentence)
    """What to do; empty when nothing is wrong."""
    figures: Mapping[str, float | int | str | None] = field(default_factory=dict)
    """The numbers that it rests on, for programs. Ages are seconds, sizes are bytes."""


def ok(text: Any, **figures: Any) -> Answer:
    """All is well; `text` may use the figures."""
    return Answer(Status.OK, Sentence(text, _shown(figures)), figures=figures)


def warning(text: Any, remedy: Any = "", **figures: Any) -> Answer:
    """Degraded; `text` and `remedy` may use the figures."""
    return Answer(Status.WARNING, Sentence(text, _shown(figures)), Sentence(remedy, _shown(figures)), figures)


def failure(text: Any, remedy: Any = "", **figures: Any) -> Answer:
    """Broken; `text` and `remedy` may use the figures."""
    return Answer(Status.FAILURE, Sentence(text, _shown(figures)), Sentence(remedy, _shown(figures)), figures)


def worst(statuses: list[Status]) -> Status:
    """The worst of them; ok when there are none."""
    order = list(Status)
    return max(statuses, key=order.index, default=Status.OK)


def _shown(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures for people: what is named `…_seconds` as a duration, `…_bytes` as a size."""
    looks = {"seconds": Duration, "bytes": Size}
    return {name: looks.get(name.rpartition("_")[2], _as_it_is)(value) for name, value in figures.items()}


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Duration:
    """Seconds in the unit that matters: 12 s, 4 min, 26 h, 9 d."""

    seconds: float | None

    def __str__(self) -> str:
        seconds = self.seconds or 0.0
        for longest, size, unit in ((120, 1, "s"), (7200, 60, "min"), (259_200, 3600, "h")):
            if seconds < longest:
                return f"{seconds / size:.0f} {unit}"
        return f"{seconds / 86_400:.0f} {pgettext('unit of time', 'd')}"


@dataclass(frozen=True)
class Size:
    """Bytes in the unit that matters."""

    bytes: int | None

    def __str__(self) -> str:
        size = float(self.bytes or 0)
        for unit in ("B", "kB", "MB", "GB"):
            if size < 1000:
                return f"{size:.3g} {unit}"
            size /= 1000
        return f"{size:.3g} TB"
