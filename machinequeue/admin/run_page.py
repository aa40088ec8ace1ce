"""A run's page: what it is, when, with what, on what; its attempts and its output."""

from datetime import datetime
from itertools import zip_longest
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from machinequeue.admin import timings, wording
from machinequeue.admin.readonly import ReadOnlyAdmin
from machinequeue.lifecycle import FINISHED, AttemptStatus, RunStatus
from machinequeue.models import Attempt, TaskRun
from machinequeue.records import runs


class RunPage(ReadOnlyAdmin):
    change_form_template = "machinequeue/admin/run.html"
    fieldsets = (
        (None, {"fields": (("task", "queue", "machine_name"), ("attempt", "priority", "timeout_seconds"))}),
        (
            gettext_lazy("Times"),
            {
                "fields": (
                    ("enqueued", "due", "expires"),
                    ("started", "last_attempted", "finished"),
                    ("waited", "ran", "cancel_requested"),
                )
            },
        ),
        (gettext_lazy("Call"), {"fields": (("arguments", "keyword_arguments"), ("returned", "said_metadata"))}),
        (gettext_lazy("Machine asked for"), {"fields": (("size", "backend", "spec_key"), "spec_json")}),
    )
    readonly_fields = (
        "machine_name",
        "attempt",
        "timeout_seconds",
        "enqueued",
        "due",
        "expires",
        "started",
        "last_attempted",
        "finished",
        "waited",
        "ran",
        "cancel_requested",
        "arguments",
        "keyword_arguments",
        "returned",
        "said_metadata",
        "size",
        "spec_json",
    )

    @admin.display(description=gettext_lazy("status"))
    def status_badge(self, run: TaskRun) -> SafeString:
        return wording.status(run)

    @admin.display(description=gettext_lazy("attempt"))
    def attempt(self, run: TaskRun) -> SafeString:
        lost = _("%(number)d lost") % {"number": run.lost_attempts} if run.lost_attempts else ""
        return wording.with_note(f"{timings.attempt_number(run)}/{run.max_attempts}", lost)

    @admin.display(description=gettext_lazy("machine"))
    def machine_name(self, run: TaskRun) -> SafeString | str:
        tries = _tries(run)
        return wording.machine_link(tries[-1].machine) if tries else wording.NOTHING

    # Times -----------------------------------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("enqueued"))
    def enqueued(self, run: TaskRun) -> str:
        return wording.when(run.enqueued_at)

    @admin.display(description=gettext_lazy("due"))
    def due(self, run: TaskRun) -> str:
        return wording.when(timings.due_at(run))

    @admin.display(description=gettext_lazy("expires"))
    def expires(self, run: TaskRun) -> str:
        return wording.when(run.expires_at)

    @admin.display(description=gettext_lazy("first started"))
    def started(self, run: TaskRun) -> str:
        return wording.when(run.started_at)

    @admin.display(description=gettext_lazy("last attempted"))
    def last_attempted(self, run: TaskRun) -> str:
        return wording.when(run.last_attempted_at)

    @admin.display(description=gettext_lazy("finished"))
    def finished(self, run: TaskRun) -> str:
        return wording.when(run.finished_at)

    @admin.display(description=gettext_lazy("cancel requested"))
    def cancel_requested(self, run: TaskRun) -> str:
        return wording.when(run.cancel_requested_at)

    @admin.display(description=gettext_lazy("timeout"))
    def timeout_seconds(self, run: TaskRun) -> str:
        return wording.duration(run.timeout)

    @admin.display(description=gettext_lazy("waited"))
    def waited(self, run: Any) -> str:
        seconds = timings.waited(run, run.now)
        if seconds is not None and seconds < 0:
            return _("due in %(duration)s") % {"duration": wording.duration(-seconds)}
        return wording.duration(seconds)

    @admin.display(description=gettext_lazy("ran"))
    def ran(self, run: Any) -> str:
        tries = _tries(run)
        return wording.duration(timings.ran(tries[-1], run.now)) if tries else wording.NOTHING

    # A run's page ----------------------------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("arguments"))
    def arguments(self, run: TaskRun) -> SafeString:
        return wording.pretty(run.args)

    @admin.display(description=gettext_lazy("keyword arguments"))
    def keyword_arguments(self, run: TaskRun) -> SafeString:
        return wording.pretty(run.kwargs)

    @admin.display(description=gettext_lazy("return value"))
    def returned(self, run: TaskRun) -> SafeString | str:
        return wording.pretty(run.return_value) if run.status == RunStatus.SUCCESSFUL else wording.NOTHING

    @admin.display(description=gettext_lazy("metadata"))
    def said_metadata(self, run: TaskRun) -> SafeString | str:
        return wording.NOTHING if run.metadata is None else wording.pretty(run.metadata)

    @admin.display(description=gettext_lazy("size"))
    def size(self, run: TaskRun) -> str:
        return wording.size(run.spec)

    @admin.display(description=gettext_lazy("spec"))
    def spec_json(self, run: TaskRun) -> SafeString:
        return wording.pretty(run.spec)

    def page(self, request: HttpRequest, run: Any) -> dict[str, Any]:
        return {
            "why": runs.why(run),
            "badge": wording.status(run),
            "progress": wording.progress(run.progress) if run.progress else "",
            "attempts": _attempts(run),
            "output": runs.output(run.pk),
            "live": run.status not in FINISHED,
            "nobody": _("No machine claimed it.") if run.status in FINISHED else _("No machine has claimed it yet."),
        }


def _tries(run: Any) -> list[Attempt]:
    """The attempts of a run, oldest first; read once where the list did not bring them."""
    if not hasattr(run, "tries"):
        run.tries = runs.attempts(run.pk)
    tries: list[Attempt] = run.tries
    return tries


def _attempts(run: Any) -> list[dict[str, Any]]:
    """The newest first, each with what came next where memory was short."""
    tries = _tries(run)
    pairs = zip_longest(tries, tries[1:])
    return [{**_attempt(one, run.now), "next": _next(run, one, after)} for one, after in pairs][::-1]


def _next(run: TaskRun, attempt: Attempt, after: Attempt | None) -> str:
    """What follows an attempt that ran out of memory; `after` is the attempt that came next."""
    if attempt.status != AttemptStatus.OUT_OF_MEMORY:
        return ""
    if after is not None:
        had = _memory(after)
        return _("It was tried again with %(memory)s.") % {"memory": had} if had else _("It was tried again.")
    if run.status == RunStatus.READY:
        return _("It is tried again with %(memory)s.") % {"memory": wording.megabytes(run.spec.get("memory_mb"))}
    most = run.spec.get("max_memory_mb")
    if run.status == RunStatus.FAILED and most:
        return _("No run of it may have more than %(memory)s (max_memory_mb).") % {"memory": wording.megabytes(most)}
    return ""


def _memory(attempt: Attempt) -> str:
    """The memory of the attempt's machine; empty when its row is gone."""
    return wording.megabytes(attempt.machine.spec.get("memory_mb")) if attempt.machine else ""


def _peak(attempt: Attempt) -> str:
    peak, of = wording.megabytes(attempt.peak_memory_mb), _memory(attempt)
    return _("%(peak)s of %(memory)s") % {"peak": peak, "memory": of} if of else peak


def _attempt(attempt: Attempt, now: datetime) -> dict[str, Any]:
    diagnosis = attempt.diagnosis or {}
    return {
        "number": attempt.epoch,
        "badge": wording.status(attempt),
        "machine": wording.machine_link(attempt.machine),
        "region": attempt.machine.region if attempt.machine else "",
        "claimed": wording.when(attempt.claimed_at),
        "ran": wording.duration(timings.ran(attempt, now)),
        "ended": _ended(attempt),
        "memory": _peak(attempt),
        "pid": attempt.pid or wording.NOTHING,
        "stages": wording.stages(attempt.stages) if attempt.stages else "",
        "error": attempt.error,
        "sentence": diagnosis.get("sentence", ""),
        "remedy": diagnosis.get("remedy", ""),
        "traceback": attempt.traceback,
    }


def _ended(attempt: Attempt) -> str:
    if attempt.signal is not None:
        return _("signal %(number)d") % {"number": attempt.signal}
    return wording.NOTHING if attempt.exit_code is None else _("exit code %(number)d") % {"number": attempt.exit_code}
