"""Check classes for django-health-check 4. Their fields are the limits; all of them work in its own view too.

`DEFAULT` is what `/ht/` asks. A check of the site's own is any of django-health-check's, in a list for the view:
`HealthView.as_view(checks=[*DEFAULT, "shop.health.Printer", ("health_check.contrib.psutil.Disk", {...})])`.
"""

import dataclasses
from datetime import timedelta
from typing import Any, ClassVar

from django.utils.translation import pgettext_lazy
from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable, ServiceWarning

from machinequeue.health import Answer, Status, asking, copies, services, timetable, work


@dataclasses.dataclass
class MachineQueueCheck(HealthCheck):  # type: ignore[misc]  # untyped there
    """One question. `answer()` says what `run()` raises as django-health-check wants it."""

    timeout: ClassVar[timedelta] = timedelta(seconds=5)
    slug: ClassVar[str] = ""
    title: ClassVar[Any] = ""
    needs_database: ClassVar[bool] = True
    """Not asked while the database does not answer: it would only say so again, later."""

    def answer(self) -> Answer:
        raise NotImplementedError

    def run(self) -> None:
        """Raise ServiceWarning or ServiceUnavailable with sentence and remedy.

        django-health-check calls it in threads that it keeps; asked in one of ours, its connection is closed.
        """
        heard = asking.ask(repr(self), self.answer, self.timeout.total_seconds())
        if heard.error is not None:
            raise heard.error
        if heard.answer is None:
            raise ServiceUnavailable(f"No answer within {heard.seconds:.1f} s.")
        answer = heard.answer
        if answer.status != Status.OK:
            kind = ServiceWarning if answer.status == Status.WARNING else ServiceUnavailable
            raise kind(f"{answer.sentence} {answer.remedy}".strip())


@dataclasses.dataclass
class Database(MachineQueueCheck):
    """A new connection answers."""

    slug = "database"
    title = pgettext_lazy("Health", "Database")
    needs_database = False

    def answer(self) -> Answer:
        return services.database()


@dataclasses.dataclass
class Wakeups(MachineQueueCheck):
    """Redis, or the file, takes wake-ups; a warning at most."""

    slug = "wakeups"
    title = pgettext_lazy("Health", "Wake-ups")
    needs_database = False

    def answer(self) -> Answer:
        return services.carrier()


@dataclasses.dataclass
class Dispatcher(MachineQueueCheck):
    """A dispatcher was seen lately."""

    slug = "dispatcher"
    title = pgettext_lazy("Health", "Dispatcher")
    silent: timedelta = timedelta(seconds=30)

    def answer(self) -> Answer:
        return work.dispatcher(self.silent.total_seconds())


@dataclasses.dataclass
class Backlog(MachineQueueCheck):
    """No due run waits too long. A queue that is paused does not count."""

    slug = "backlog"
    title = pgettext_lazy("Health", "Waiting runs")
    late: timedelta = timedelta(minutes=10)
    too_late: timedelta = timedelta(hours=1)

    def answer(self) -> Answer:
        return work.backlog(self.late.total_seconds(), self.too_late.total_seconds())


@dataclasses.dataclass
class Schedules(MachineQueueCheck):
    """Every tick is enqueued in time."""

    slug = "schedules"
    title = pgettext_lazy("Health", "Schedules")
    late: timedelta = timedelta(minutes=1)
    too_late: timedelta = timedelta(minutes=10)

    def answer(self) -> Answer:
        return timetable.schedules(self.late.total_seconds(), self.too_late.total_seconds())


@dataclasses.dataclass
class Circuits(MachineQueueCheck):
    """Nothing holds launches back."""

    slug = "circuits"
    title = pgettext_lazy("Health", "Launches")

    def answer(self) -> Answer:
        return work.circuits()


@dataclasses.dataclass
class Api(MachineQueueCheck):
    """The Machines API answered a dispatcher lately. Nothing is asked of it here."""

    slug = "api"
    title = pgettext_lazy("Health", "Machines API")
    quiet: timedelta = timedelta(minutes=5)

    def answer(self) -> Answer:
        return work.api(self.quiet.total_seconds())


@dataclasses.dataclass
class Machines(MachineQueueCheck):
    """No machine is stuck."""

    slug = "machines"
    title = pgettext_lazy("Health", "Machines")

    def answer(self) -> Answer:
        return work.machines()


@dataclasses.dataclass
class Backup(MachineQueueCheck):
    """The newest backup is there, new, and not suddenly small; `smallest` is a part of the one before."""

    slug = "backup"
    title = pgettext_lazy("Health", "Backup")
    database: str = "default"
    late: timedelta = timedelta(hours=26)
    smallest: float = 0.5

    def answer(self) -> Answer:
        return copies.backup(self.database, self.late.total_seconds(), self.smallest)


@dataclasses.dataclass
class Drill(MachineQueueCheck):
    """A backup was lately proven to restore."""

    slug = "drill"
    title = pgettext_lazy("Health", "Restore drill")
    database: str = "default"
    late: timedelta = timedelta(days=8)

    def answer(self) -> Answer:
        return copies.drill(self.database, self.late.total_seconds())


DEFAULT: tuple[type[MachineQueueCheck], ...] = (
    Database,
    Wakeups,
    Dispatcher,
    Backlog,
    Schedules,
    Circuits,
    Api,
    Machines,
    Backup,
    Drill,
)
