"""Runs: the list. A run's page and the wishes retry and cancel are in the rooms beside."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from machinequeue.admin import search, summary, wording
from machinequeue.admin.alarms import AlarmedAdmin
from machinequeue.admin.filters import EnqueuedFilter, QueueFilter, TaskFilter
from machinequeue.admin.run_page import RunPage
from machinequeue.admin.run_wishes import RunWishes
from machinequeue.lifecycle import RunStatus
from machinequeue.models import Attempt, Queue, TaskRun
from machinequeue.records import sql

_LARGE = ("args", "kwargs", "return_value", "metadata", "checkpoint", "spec")
_TRIES = ("run_id", "epoch", "claimed_at", "finished_at", "seconds", "machine__name", "machine__fly_id")


class RunList(ChangeList):
    """The rows of a page, each with its attempts and what its queue says of why it waits."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        attempts = Attempt.objects.select_related("machine").only(*_TRIES).order_by("epoch")
        rows = super().get_queryset(request, exclude_parameters).defer(*_LARGE)
        return rows.prefetch_related(Prefetch("attempts", attempts, to_attr="tries"))

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        queues = {(queue.backend, queue.name): queue for queue in Queue.objects.using(sql.alias())}
        page: list[Any] = list(self.result_list)
        for run in page:
            run.lane = queues.get((run.backend, run.queue))
        self.result_list = page  # a list serves as well as a queryset


@admin.register(TaskRun)
class RunAdmin(AlarmedAdmin, RunWishes, RunPage):
    list_display = (
        "status_badge",
        "task_name",
        "queue_name",
        "attempt",
        "enqueued_time",
        "waited",
        "ran_on",
    )
    list_display_links = None
    list_filter = ("status", QueueFilter, TaskFilter, EnqueuedFilter)
    search_fields = ("task",)
    search_help_text = gettext_lazy("The first characters of an id, or part of a task’s name.")
    change_list_template = "machinequeue/admin/runs.html"
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
            queryset = queryset.filter(search.run_matches(word))
        return queryset, False

    @admin.display(description=gettext_lazy("task"))
    def task_name(self, run: TaskRun) -> SafeString:
        look = "mq-bad" if run.status == RunStatus.FAILED else ""
        return wording.with_note(wording.run_link(run), _note(run), look)

    @admin.display(description=gettext_lazy("queue"))
    def queue_name(self, run: TaskRun) -> SafeString:
        return wording.with_note(run.queue, _("priority %(number)d") % {"number": run.priority} if run.priority else "")

    @admin.display(description=gettext_lazy("enqueued"))
    def enqueued_time(self, run: Any) -> SafeString:
        return wording.clock(run.enqueued_at, run.now)

    @admin.display(description=gettext_lazy("ran on"))
    def ran_on(self, run: TaskRun) -> SafeString:
        return wording.with_note(self.ran(run), self.machine_name(run))


def _note(run: Any) -> SafeString | str:
    """Progress of what runs, why another waits or how it ended, in one line."""
    if run.status == RunStatus.RUNNING:
        return _("asked to stop") if run.cancel_requested_at else wording.progress(run.progress)
    if run.status == RunStatus.READY and run.run_after <= run.now and run.lane is not None:
        if run.lane.paused_at:
            return _("the queue is paused")
        return wording.one_line(run.lane.reasons.get(run.spec_key) or run.reason)
    return wording.one_line(run.reason)
