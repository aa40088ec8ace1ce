"""Task profiles: what runs of a task usually take, the memory that they were found to need, the wish to forget it."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from machinequeue.admin import wording
from machinequeue.admin.asking import AskingAdmin, Wish, grant_each
from machinequeue.models import TaskProfile
from machinequeue.records import profiles

FORGET = Wish(
    name="forget_memory",
    permission="reset_taskprofile",
    verb=gettext_lazy("Forget learned memory"),
    question=gettext_lazy("Forget the learned memory of this task?"),
    consequence=gettext_lazy(
        "Runs that are enqueued from now on get the memory that the task or its queue asks for. "
        "Should that be too little again, it is learned again."
    ),
    act=lambda profile: profiles.forget_memory(profile.task),
    fits=lambda profile: profile.memory_mb is not None,
)


class LearnedFilter(admin.SimpleListFilter):
    title = gettext_lazy("learned memory")
    parameter_name = "learned"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [("yes", _("Learned")), ("no", _("Not learned"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in ("yes", "no"):
            return queryset
        return queryset.filter(memory_mb__isnull=self.value() == "no")


@admin.register(TaskProfile)
class ProfileAdmin(AskingAdmin):
    list_display = ("task_name", "runs", "usual", "peak", "learned", "updated")
    list_display_links = None
    ordering = ("task",)
    list_filter = (LearnedFilter,)
    search_fields = ("task",)
    search_help_text = gettext_lazy("Part of a task’s name.")
    actions = ("forget_memory",)
    offers = (FORGET,)
    change_form_template = "machinequeue/admin/page.html"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("runs", "usual", "peak"),
                    ("learned_mb", "too_little", "modest"),
                    ("updated", "its_runs"),
                )
            },
        ),
    )
    readonly_fields = ("usual", "peak", "learned_mb", "too_little", "modest", "updated", "its_runs")

    @admin.display(description=gettext_lazy("task"))
    def task_name(self, profile: TaskProfile) -> SafeString:
        return wording.with_note(wording.profile_link(profile), profile.task.rpartition(".")[0])

    @admin.display(description=gettext_lazy("usually takes"))
    def usual(self, profile: TaskProfile) -> str:
        return wording.duration(profile.run_seconds if profile.runs else None)

    @admin.display(description=gettext_lazy("peak memory"))
    def peak(self, profile: TaskProfile) -> str:
        return wording.megabytes(profile.peak_memory_mb)

    @admin.display(description=gettext_lazy("learned memory"))
    def learned(self, profile: TaskProfile) -> SafeString | str:
        if profile.memory_mb is None:
            return wording.NOTHING
        note = _("%(memory)s was too little") % {"memory": self.too_little(profile)}
        return wording.with_note(self.learned_mb(profile), note)

    @admin.display(description=gettext_lazy("learned memory"))
    def learned_mb(self, profile: TaskProfile) -> str:
        return wording.megabytes(profile.memory_mb)

    @admin.display(description=gettext_lazy("was too little"))
    def too_little(self, profile: TaskProfile) -> str:
        return wording.megabytes(profile.outgrown_mb)

    @admin.display(description=gettext_lazy("forgotten after"))
    def modest(self, profile: TaskProfile) -> str:
        if profile.memory_mb is None:
            return wording.NOTHING
        left = max(profiles.MODEST_RUNS - profile.modest_runs, 1)
        text = ngettext("%d more run with a low peak", "%d more runs in a row with a low peak", left)
        return text % left

    @admin.display(description=gettext_lazy("updated"))
    def updated(self, profile: Any) -> str:
        return wording.ago(profile.updated_at, profile.now)

    @admin.display(description=gettext_lazy("runs of the task"))
    def its_runs(self, profile: TaskProfile) -> SafeString:
        address = f"{reverse('admin:machinequeue_taskrun_changelist')}?{urlencode({'task': profile.task})}"
        return format_html('<a href="{}">{}</a>', address, _("Show them"))

    # Forget ----------------------------------------------------------------------------------------------------------

    def has_forget_permission(self, request: HttpRequest) -> bool:
        return self.may(request, FORGET.permission)

    @admin.action(description=gettext_lazy("Forget learned memory"), permissions=["forget"])
    def forget_memory(self, request: HttpRequest, queryset: QuerySet[TaskProfile]) -> None:
        self.grant(request, FORGET, queryset)

    def grant(self, request: HttpRequest, wish: Wish, rows: Iterable[Any]) -> None:
        if changed := grant_each(request, wish.act, rows, "Forgot learned memory."):
            text = ngettext(
                "The learned memory of %d task is forgotten.", "The learned memory of %d tasks is forgotten.", changed
            )
            self.message_user(request, text % changed, messages.SUCCESS)
        else:
            self.message_user(request, _("Nothing changed: no memory was learned."), messages.WARNING)

    def stands(self, row: Any) -> tuple[SafeString, str]:
        text = _("%(memory)s was too little") % {"memory": self.too_little(row)} if row.memory_mb is not None else ""
        return wording.badge(self.learned_mb(row), "quiet"), text
