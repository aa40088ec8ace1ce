"""Whether runs are executed: dispatchers, what waits, what holds launches back, machines, the Machines API."""

from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from machinequeue import conf
from machinequeue.health.answers import Answer, failure, ok, warning
from machinequeue.lifecycle import CircuitKind
from machinequeue.records import circuits as circuit_rows
from machinequeue.records import vitals

HOLDS_ALL = frozenset({CircuitKind.TOKEN, CircuitKind.APP, CircuitKind.QUOTA})
"""With one of these open nothing at all is launched."""
LONGEST_REASON = 300
MARGIN = 120.0
"""Seconds that the reconciler is given to end a machine before it counts as stuck."""


def dispatcher(silent: float = 30.0) -> Answer:
    """Whether a dispatcher was seen within `silent` seconds."""
    alive, age = vitals.dispatchers()
    start = _("Start one: manage.py mq_dispatcher. On Fly: fly status, fly logs, and the process group of fly.toml.")
    if age is None:
        return failure(_("No dispatcher is running, so no machine is launched."), start, alive=0, age_seconds=None)
    figures = {"alive": alive, "age_seconds": age}
    if age > silent:
        text = _("The last dispatcher was seen %(age_seconds)s ago; since then no machine was launched.")
        return failure(text, start, **figures)
    return ok(_("A dispatcher was seen %(age_seconds)s ago; %(alive)d alive."), **figures)


def backlog(late: float = 600.0, too_late: float = 3600.0) -> Answer:
    """For how long the oldest due run has waited: a warning from `late` seconds on, a failure from `too_late` on."""
    found = vitals.backlog()
    if found is None:
        return ok(_("No run waits."), due=0, oldest_seconds=0)
    text = ngettext_lazy(
        "%(due)d run is due; the oldest, of queue “%(queue)s”, for %(oldest_seconds)s.",
        "%(due)d runs are due; the oldest, of queue “%(queue)s”, for %(oldest_seconds)s.",
        "due",
    )
    figures = {"due": found.due, "oldest_seconds": found.seconds, "queue": found.queue}
    if found.seconds <= late:
        return ok(text, **figures)
    answer = failure if found.seconds > too_late else warning
    reason = found.reason[:LONGEST_REASON]
    remedy = (
        _("It waits: %(reason)s")
        if reason
        else _("Its page in the admin says why it waits. More machines at once: max_machines of the queue.")
    )
    return answer(text, remedy, reason=reason, **figures)


def circuits() -> Answer:
    """Which circuits are open: a failure where nothing at all can be launched, else a warning."""
    found = circuit_rows.all_open()
    if not found:
        return ok(_("Nothing holds launches back."), open=0)
    worst = min(found, key=lambda circuit: circuit.kind not in HOLDS_ALL)
    figures = {
        "open": len(found),
        "kind": worst.kind,
        "name": worst.get_kind_display(),
        "reason": worst.reason[:LONGEST_REASON],
    }
    text = ngettext_lazy(
        "%(open)d circuit is open and holds launches back: %(name)s.",
        "%(open)d circuits are open and hold launches back, such as: %(name)s.",
        "open",
    )
    answer = failure if worst.kind in HOLDS_ALL else warning
    return answer(text, _("Mend this, then press “Try again now” in the admin: %(reason)s"), **figures)


def machines() -> Answer:
    """Whether there are machines that the reconciler should have ended by now."""
    settings = conf.settings()
    found = vitals.stuck(
        overdue=MARGIN,
        boot=settings.boot_timeout + 4 * settings.check_in_timeout + MARGIN,
        silence=settings.silent_seconds + MARGIN,
    )
    if not found:
        return ok(_("No machine is stuck."), stuck=0)
    first = found[0]
    return warning(
        _STUCK[first.why],
        _("A dispatcher ends such machines; its log says why it does not. By hand: fly machine destroy --force."),
        stuck=len(found),
        machine=first.name,
        why=first.why,
        since_seconds=first.seconds,
    )


_STUCK = {
    "late": ngettext_lazy(
        "%(stuck)d machine is stuck: %(machine)s is %(since_seconds)s past its deadline.",
        "%(stuck)d machines are stuck, such as %(machine)s, which is %(since_seconds)s past its deadline.",
        "stuck",
    ),
    "unborn": ngettext_lazy(
        "%(stuck)d machine is stuck: %(machine)s was asked for %(since_seconds)s ago and never checked in.",
        "%(stuck)d machines are stuck, such as %(machine)s, asked for %(since_seconds)s ago and never checked in.",
        "stuck",
    ),
    "silent": ngettext_lazy(
        "%(stuck)d machine is stuck: %(machine)s has said nothing of its run for %(since_seconds)s.",
        "%(stuck)d machines are stuck, such as %(machine)s, which has said nothing of its run for %(since_seconds)s.",
        "stuck",
    ),
}


def api(quiet: float = 300.0) -> Answer:
    """Whether the Machines API answered a dispatcher within `quiet` seconds; they ask at least once a minute."""
    found = vitals.api(conf.settings().app)
    remedy = _("Runs wait meanwhile, and none is lost. See https://status.flyio.net, the token and FLY_API_HOSTNAME.")
    if found is None:
        return ok(_("No dispatcher has asked the Machines API yet."), age_seconds=None)
    figures = {"age_seconds": found.answered, "error": found.error}
    if found.answered is None:
        return warning(_("The Machines API has never answered: %(error)s"), remedy, **figures)
    if found.answered > quiet:
        text = _("The Machines API last answered %(age_seconds)s ago: %(error)s")
        nothing = _("The Machines API was last asked %(age_seconds)s ago: is a dispatcher running?")
        return warning(text if found.error else nothing, remedy, **figures)
    return ok(_("The Machines API answered %(age_seconds)s ago."), **figures)
