"""Whether schedules are kept."""

from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from machinequeue.health.answers import Answer, failure, ok, warning
from machinequeue.records import schedules as rows

LONGEST_ERROR = 300


def schedules(late: float = 60.0, too_late: float = 600.0) -> Answer:
    """Whether every due tick was enqueued: a warning from `late` seconds on, a failure from `too_late` on, and where a
    tick cannot be enqueued at all.
    """
    lateness, failing = rows.lateness(), rows.failing()
    if failing:
        name, error = failing[0]
        return failure(
            ngettext_lazy(
                "%(failing)d schedule cannot be enqueued: %(schedule)s.",
                "%(failing)d schedules cannot be enqueued, such as %(schedule)s.",
                "failing",
            ),
            _("Its page in the admin has the rest: %(error)s"),
            failing=len(failing),
            schedule=name,
            error=error[:LONGEST_ERROR],
            lateness_seconds=lateness,
        )
    if lateness <= late:
        return ok(_("Every schedule is on time."), lateness_seconds=lateness)
    names = rows.late(late)
    answer = failure if lateness > too_late else warning
    return answer(
        ngettext_lazy(
            "%(late)d schedule is late: %(schedule)s, by %(lateness_seconds)s.",
            "%(late)d schedules are late; most of all %(schedule)s, by %(lateness_seconds)s.",
            "late",
        ),
        _("The dispatcher is the clock of schedules: does one run, and what does its log say?"),
        late=len(names),
        schedule=names[0] if names else "",
        lateness_seconds=lateness,
    )
