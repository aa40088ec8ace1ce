"""The actions retry and cancel of the list, and the same as views that ask first, for the buttons of a run's page."""

from collections.abc import Callable

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from machinequeue.admin import wishes, wording
from machinequeue.admin.readonly import ReadOnlyAdmin
from machinequeue.models import TaskRun
from machinequeue.records import runs


class RunWishes(ReadOnlyAdmin):
    actions = ("retry_runs", "cancel_runs")

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
            "original": run,
            "has_view_permission": True,
            "badge": wording.status(run),
            "why": runs.why(run),
            "media": self.media,
        }
        return TemplateResponse(request, "machinequeue/admin/confirm.html", context)
