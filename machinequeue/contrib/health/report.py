"""Ask a list of checks, ours and others of django-health-check, and say how it stands altogether."""

import asyncio
import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.utils import translation
from django.utils.module_loading import import_string
from django.utils.translation import gettext_lazy as _
from health_check.base import HealthCheck
from health_check.exceptions import HealthCheckException, ServiceWarning

from machinequeue.contrib.health.checks import Database, MachineQueueCheck
from machinequeue.health import Answer, Status, asking, failure, ok, warning
from machinequeue.health.answers import worst

logger = logging.getLogger("machinequeue.health")

Listed = type[HealthCheck] | str | tuple[type[HealthCheck] | str, Mapping[str, Any]]
"""A check as django-health-check lists it: a class, its dotted path, or either with its fields."""

STANDINGS = {Status.OK: "ok", Status.WARNING: "degraded", Status.FAILURE: "failure"}


@dataclass(frozen=True)
class Result:
    """What one check found."""

    name: str
    title: Any
    answer: Answer
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.answer.status.value,
            "sentence": str(self.answer.sentence),
            "remedy": str(self.answer.remedy),
            "seconds": round(self.seconds, 4),
            "figures": dict(self.answer.figures),
        }


@dataclass(frozen=True)
class Report:
    """What all checks found."""

    results: list[Result]

    @property
    def status(self) -> Status:
        return worst([result.answer.status for result in self.results])

    @property
    def standing(self) -> str:
        """ok, degraded or failure."""
        return STANDINGS[self.status]

    @property
    def http_status(self) -> int:
        """200 also when degraded: work goes on, and whoever restarts on a 5xx would make it worse."""
        return 503 if self.status == Status.FAILURE else 200

    def as_dict(self) -> dict[str, Any]:
        """For programs, and so in English whatever the request's language."""
        with translation.override("en"):
            return {"status": self.standing, "checks": [result.as_dict() for result in self.results]}

    def as_text(self) -> str:
        """For people at a terminal: a line for each check, and below it what to do."""
        width = max((len(result.name) for result in self.results), default=0)
        with translation.override("en"):
            lines = [f"{self.standing}\n"]
            for result in self.results:
                lines.append(f"{result.answer.status:<8} {result.name:<{width}}  {result.answer.sentence}\n")
                if result.answer.status != Status.OK and str(result.answer.remedy):
                    lines.append(f"{'':<8} {'':<{width}}  {result.answer.remedy}\n")
        return "".join(lines)


def made(listed: Iterable[Listed]) -> list[HealthCheck]:
    """The checks of a list."""
    checks = []
    for entry in listed:
        kind, fields = entry if isinstance(entry, tuple) else (entry, {})
        checks.append((import_string(kind) if isinstance(kind, str) else kind)(**fields))
    return checks


def look(checks: Iterable[HealthCheck]) -> Report:
    """Ask them all, the database first; each is bounded by its `timeout`."""
    named = _named(checks)
    first = {name: check for name, check in named.items() if isinstance(check, Database)}
    results = _asked(first)
    away = any(result.answer.status == Status.FAILURE for result in results.values())
    rest = {name: check for name, check in named.items() if name not in first}
    unknown = {name: check for name, check in rest.items() if away and getattr(check, "needs_database", False)}
    for name, check in unknown.items():
        results[name] = Result(name, _title(check), warning(_("Not known while the database does not answer.")), 0.0)
    results |= _asked({name: check for name, check in rest.items() if name not in unknown})
    return Report([results[name] for name in named])


def _named(checks: Iterable[HealthCheck]) -> dict[str, HealthCheck]:
    """By their slugs, or their class names; a second of the same name says its fields."""
    named: dict[str, HealthCheck] = {}
    for check in checks:
        name = getattr(check, "slug", "") or type(check).__name__
        named[repr(check) if name in named else name] = check
    return named


def _title(check: HealthCheck) -> Any:
    return getattr(check, "title", "") or type(check).__name__


def _asked(checks: Mapping[str, HealthCheck]) -> dict[str, Result]:
    questions = {
        repr(check): asking.Question(partial(_answer, check), check.timeout.total_seconds())
        for check in checks.values()
    }
    heard = asking.ask_all(questions)
    return {name: _result(name, check, heard[repr(check)]) for name, check in checks.items()}


def _answer(check: HealthCheck) -> Answer:
    if isinstance(check, MachineQueueCheck):
        return check.answer()
    try:
        running: Any = check.run()
        if inspect.isawaitable(running):
            asyncio.run(_finish(running))
    except ServiceWarning as error:
        return warning("%(message)s", message=str(error.message))
    except HealthCheckException as error:
        return failure("%(message)s", message=str(error.message))
    return ok(_("It works."))


async def _finish(running: Any) -> None:
    await running


def _result(name: str, check: HealthCheck, heard: asking.Heard[Answer]) -> Result:
    answer = heard.answer
    if heard.error is not None:
        logger.error("Health: the check %r raised.", check, exc_info=heard.error)
        text = _("The check itself failed: %(error)s. The log has more.")
        answer = failure(text, error=type(heard.error).__name__)
    elif answer is None:
        answer = failure(_("No answer within %(waited_seconds)s."), waited_seconds=round(heard.seconds, 3))
    return Result(name, _title(check), answer, heard.seconds)
