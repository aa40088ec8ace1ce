"""Which backups to keep. Pure."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Rule:
    """How many to keep: of the newest, and the newest one of so many days, weeks and months that have one."""

    newest: int = 10
    daily: int = 7
    weekly: int = 4
    monthly: int = 6


def kept[K](backups: Iterable[tuple[K, datetime]], rule: Rule) -> set[K]:
    """The keys of those to keep, of (key, when it was made in the zone whose days count). The newest always is."""
    ordered = sorted(backups, key=lambda each: each[1], reverse=True)
    keep = {key for key, _ in ordered[: max(rule.newest, 1)]}
    keep |= _newest_of(ordered, rule.daily, lambda made: made.date())
    keep |= _newest_of(ordered, rule.weekly, lambda made: made.isocalendar()[:2])
    keep |= _newest_of(ordered, rule.monthly, lambda made: (made.year, made.month))
    return keep


def _newest_of[K](ordered: list[tuple[K, datetime]], many: int, period: Callable[[datetime], Hashable]) -> set[K]:
    first: dict[Hashable, K] = {}
    for key, made in ordered:
        first.setdefault(period(made), key)
    return set(list(first.values())[:many])
