"""Figures: several repetitions of one quantity, as median with minimum and maximum."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """What one quantity was in each repetition."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, floor: "Figure") -> "Figure":
        """This one as a multiple of another, repetition by repetition."""
        return Figure(tuple(a / b for a, b in zip(self.values, floor.values, strict=True)), "×")

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{_short(self.median)} {self.unit} [{_short(low)}–{_short(high)}]"


def _short(number: float) -> str:
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 20 else f"{number:.2f}"


@dataclass
class Row:
    """A line of the table. `ratio` is to the floor above it; `goal` is what the ratio may be at most."""

    name: str
    figure: Figure
    ratio: Figure | None = None
    goal: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.goal is None or self.ratio is None else self.ratio.median <= self.goal


@dataclass
class Section:
    """One question with its lines, and stages in milliseconds where they are known."""

    key: str
    question: str
    rows: list[Row] = field(default_factory=list)
    stages: dict[str, Figure] = field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; every repetition is kept."""
        rows = [{**asdict(row), "median": row.figure.median, "met": row.met} for row in self.rows]
        return {"question": self.question, "rows": rows, "stages": {k: asdict(v) for k, v in self.stages.items()}}


def milliseconds(call: Callable[[int], object], times: int) -> float:
    """The median time of one call, in ms, over so many."""
    taken = []
    for number in range(times):
        begin = time.perf_counter()
        call(number)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1000
