"""Runs: the list, a run's page with its attempts and output, and the buttons retry and cancel."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import Prefetch, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from machinequeue.admin import search, summary, timings, wishes, wording
from machinequeue.admin.filters import QueueFilter, TaskFilter
from machinequeue.admin.readonly import ReadOnlyAdmin
from machinequeue.lifecycle import FINISHED, RunStatus
from machinequeue.models import Attempt, Queue, TaskRun
from machinequeue.records import runs, sql

_LARGE = ("args", "kwargs", "return_value", "metadata", "checkpoint", "spec")


class RunList(ChangeList):
    """The rows of a page, each with its attempts and what its queue says of why it waits."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        attempts = Attempt.objects.only("run_id", "epoch", "status", "claimed_at", "finished_at", "seconds")
        rows = super().get_queryset(request, exclude_parameters).defer(*_LARGE)
        return rows.prefetch_related(Prefetch("attempts", attempts.order_by("epoch"), to_attr="tries"))

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        queues = {(queue.backend, queue.name): queue for queue in Queue.objects.using(sql.alias())}
        page: list[Any] = list(self.result_list)
        for run in page:
            run.lane = queues.get((run.backend, run.queue))
        self.result_list = page  # type: ignore[assignment]  # a list serves as well as a queryset


@admin.register(TaskRun)
class RunAdmin(ReadOnlyAdmin):
    list_display = (
        "status_badge",
        "task_name",
        "queue",
        "attempt",
        "priority",
        "enqueued",
        "waited",
        "ran",
        "machine_name",
        "note",
    )
    list_display_links = ("task_name",)
    list_filter = ("status", QueueFilter, TaskFilter, ("enqueued_at", admin.DateFieldListFilter))
    list_select_related = ("machine",)
    search_fields = ("task",)
    search_help_text = gettext_lazy("The first characters of an id, or part of a task’s name.")
    actions = ("retry_runs", "cancel_runs")
    change_list_template = "machinequeue/admin/runs.html"
    change_form_template = "machinequeue/admin/run.html"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("status_badge", "attempt", "priority"),
                    ("task", "queue", "machine_name"),
                    ("id", "timeout_seconds", "lost_attempts"),
                )
            },
        ),
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
        (gettext_lazy("Call"), {"fields": ("arguments", "keyword_arguments", "returned", "said_metadata")}),
        (
            gettext_lazy("Machine asked for"),
            {"fields": ("size", "spec_json", ("spec_key", "backend", "epoch")), "classes": ("collapse",)},
        ),
    )
    readonly_fields = (
        "status_badge",
        "attempt",
        "machine_name",
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

    # The list --------------------------------------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RunList

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        figures = summary.figures() if request.method == "GET" else []
        return super().changelist_view(request, {"figures": figures, **(extra_context or {})})

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        for word in search_term.split():
            queryset = queryset.filter(Q(task__icontains=word) | search.id_starts_with(word))
        return queryset, False

    @admin.display(description=gettext_lazy("status"))
    def status_badge(self, run: TaskRun) -> SafeString:
        return wording.status(run)

    @admin.display(description=gettext_lazy("task"))
    def task_name(self, run: TaskRun) -> SafeString:
        return wording.task(run.task)

    @admin.display(description=gettext_lazy("attempt"))
    def attempt(self, run: TaskRun) -> str:
        number = f"{timings.attempt_number(run)}/{run.max_attempts}"
        return number + (_(" (%(number)d lost)") % {"number": run.lost_attempts} if run.lost_attempts else "")

    @admin.display(description=gettext_lazy("machine"))
    def machine_name(self, run: TaskRun) -> SafeString | str:
        return wording.machine_link(run.machine)

    @admin.display(description=gettext_lazy("reason, error or progress"))
    def note(self, run: Any) -> SafeString | str:
        if run.status == RunStatus.RUNNING:
            return _("asked to stop") if run.cancel_requested_at else wording.progress(run.progress)
        if run.status == RunStatus.READY and run.run_after <= run.now and run.lane is not None:
            if run.lane.paused_at:
                return _("the queue is paused")
            return wording.one_line(run.lane.reasons.get(run.spec_key) or run.reason) or wording.NOTHING
        return wording.one_line(run.reason) or wording.NOTHING

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
        tries = run.tries if hasattr(run, "tries") else runs.attempts(run.pk)
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

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, obj: Any = None, **kwargs: Any
    ) -> HttpResponse:
        context |= {
            "why": runs.why(obj),
            "badge": wording.status(obj),
            "progress": wording.progress(obj.progress) if obj.progress else "",
            "attempts": [_attempt(attempt, obj.now) for attempt in reversed(runs.attempts(obj.pk))],
            "output": runs.output(obj.pk),
            "live": obj.status not in FINISHED,
            "wishes": [
                wish for wish in wishes.WISHES.values() if wish.fits(obj) and self.may(request, wish.permission)
            ],
        }
        return super().render_change_form(request, context, *args, obj=obj, **kwargs)

    # Retry and cancel ------------------------------------------------------------------------------------------------

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.may(request, wishes.RETRY.permission)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.may(request, wishes.CANCEL.permission)

    @admin.action(description=gettext_lazy("Retry selected runs"), permissions=["retry"])
    def retry_runs(self, request: HttpRequest, queryset: QuerySet[TaskRun]) -> None:
        self._grant(request, wishes.RETRY, queryset)

    @admin.action(description=gettext_lazy("Cancel selected runs"), permissions=["cancel"])
    def cancel_runs(self, request: HttpRequest, queryset: QuerySet[TaskRun]) -> None:
        self._grant(request, wishes.CANCEL, queryset)

    def _grant(self, request: HttpRequest, wish: wishes.Wish, queryset: QuerySet[TaskRun]) -> None:
        rows = list(queryset.prefetch_related(None).only("pk", "task")[: wishes.MOST + 1])
        wishes.tell(request, wishes.grant(request, wish, rows[: wishes.MOST]))
        if len(rows) > wishes.MOST:
            text = _("There are more: an action takes the newest %(number)d runs at a time. Do it again for the rest.")
            self.message_user(request, text % {"number": wishes.MOST}, messages.WARNING)

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                f"<path:object_id>/{wish.name}/",
                self.admin_site.admin_view(self._view_of(wish)),
                name=f"machinequeue_taskrun_{wish.name}",
            )
            for wish in wishes.WISHES.values()
        ]
        return own + super().get_urls()

    def _view_of(self, wish: wishes.Wish) -> Callable[..., HttpResponse]:
        def view(request: HttpRequest, object_id: str) -> HttpResponse:
            return self.wish_view(request, wish, object_id)

        return view

    def wish_view(self, request: HttpRequest, wish: wishes.Wish, object_id: str) -> HttpResponse:
        """Ask on GET, do it on POST, and go back to the run."""
        if not self.may(request, wish.permission):
            raise PermissionDenied
        run = self.get_object(request, unquote(object_id))
        if run is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        if request.method == "POST":
            wishes.tell(request, wishes.grant(request, wish, [run]))
            return HttpResponseRedirect(reverse("admin:machinequeue_taskrun_change", args=[run.pk]))
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": wish.question,
            "wish": wish,
            "run": run,
            "badge": wording.status(run),
            "why": runs.why(run),
            "media": self.media,
        }
        return TemplateResponse(request, "machinequeue/admin/confirm.html", context)


def _attempt(attempt: Attempt, now: Any) -> dict[str, Any]:
    diagnosis = attempt.diagnosis or {}
    return {
        "number": attempt.epoch,
        "badge": wording.status(attempt),
        "machine": wording.machine_link(attempt.machine),
        "region": attempt.machine.region if attempt.machine else "",
        "claimed": wording.when(attempt.claimed_at),
        "ran": wording.duration(timings.ran(attempt, now)),
        "ended": _ended(attempt),
        "memory": wording.megabytes(attempt.peak_memory_mb),
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
