"""What an operator may wish of runs: retry and cancel, with a permission, a log entry and an honest message."""

from collections import Counter
from collections.abc import Iterable

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from machinequeue.admin.asking import Wish, log
from machinequeue.lifecycle import FINISHED, RunStatus
from machinequeue.models import TaskRun
from machinequeue.records import runs, sql

MOST = 1_000
"""Runs that one action is applied to; a request must end."""

RETRY = Wish(
    name="retry",
    permission="retry_taskrun",
    verb=_("Retry"),
    question=_("Try this run again?"),
    consequence=_(
        "It gets a fresh set of attempts and starts as soon as a machine is there. "
        "What earlier attempts did outside the database may happen a second time."
    ),
    act=lambda run: runs.retry(run.pk),
    fits=lambda run: run.status in FINISHED - {RunStatus.SUCCESSFUL},
)
CANCEL = Wish(
    name="cancel",
    permission="cancel_taskrun",
    verb=_("Cancel"),
    question=_("Cancel this run?"),
    consequence=_(
        "A run that waits never starts. A run that runs is interrupted, and killed when it does not end by itself. "
        "What it did so far stays done."
    ),
    act=lambda run: runs.cancel(run.pk),
    fits=lambda run: run.status not in FINISHED and run.cancel_requested_at is None,
)

_LOGGED = {"retry": "Retried.", "cancelled": "Cancelled before it started.", "asked": "Asked to stop."}


def grant(request: HttpRequest, wish: Wish, rows: Iterable[TaskRun]) -> Counter[str]:
    """Apply the wish to each run, and log it where it came true; how often what came of it, by outcome."""
    outcomes: Counter[str] = Counter()
    for run in rows:
        # A transaction per run: the log says what happened, and no row stays locked while others are changed.
        with transaction.atomic(using=sql.alias()):
            done = wish.act(run)
            outcome = _outcome(wish, done, runs.status(run.pk))
            if done:
                log(request, run, _LOGGED[outcome])
        outcomes[outcome] += 1
    return outcomes


def _outcome(wish: Wish, done: bool, status: str | None) -> str:
    if status is None:
        return "missing"
    if wish is RETRY:
        return "retry" if done else "succeeded" if status == RunStatus.SUCCESSFUL else "unfinished"
    if not done:
        return "finished"
    return "cancelled" if status == RunStatus.CANCELLED else "asked"


def tell(request: HttpRequest, outcomes: Counter[str]) -> None:
    """One sentence of what came of it: "3 runs will be tried again; 1 had succeeded and was left alone."."""
    order = [*_LOGGED, *(outcome for outcome in outcomes if outcome not in _LOGGED)]
    level = messages.SUCCESS if _LOGGED.keys() & outcomes.keys() else messages.WARNING
    text = "; ".join(_says(outcome, outcomes[outcome]) for outcome in order if outcomes[outcome])
    messages.add_message(request, level, f"{text}.")


def _says(outcome: str, count: int) -> str:
    one_or_many = {
        "retry": ngettext("%d run will be tried again", "%d runs will be tried again", count),
        "cancelled": ngettext("%d run was cancelled", "%d runs were cancelled", count),
        "asked": ngettext("%d running run was asked to stop", "%d running runs were asked to stop", count),
        "succeeded": ngettext("%d had succeeded and was left alone", "%d had succeeded and were left alone", count),
        "unfinished": ngettext(
            "%d has not finished and was left alone", "%d have not finished and were left alone", count
        ),
        "finished": ngettext("%d had finished and was left alone", "%d had finished and were left alone", count),
        "missing": ngettext("%d does not exist any more", "%d do not exist any more", count),
    }
    return one_or_many[outcome] % count
