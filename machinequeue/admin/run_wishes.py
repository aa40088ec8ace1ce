"""The actions retry and cancel of the list, and the buttons of a run's page that ask first."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from machinequeue.admin import wishes, wording
from machinequeue.admin.asking import AskingAdmin, Wish
from machinequeue.models import TaskRun
from machinequeue.records import runs


class RunWishes(AskingAdmin):
    actions = ("retry_runs", "cancel_runs")
    offers = (wishes.RETRY, wishes.CANCEL)

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.may(request, wishes.RETRY.permission)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.may(request, wishes.CANCEL.permission)

    @admin.action(description=gettext_lazy("Retry selected runs"), permissions=["retry"])
    def retry_runs(self, request: HttpRequest, queryset: QuerySet[TaskRun]) -> None:
        self._grant_all(request, wishes.RETRY, queryset)

    @admin.action(description=gettext_lazy("Cancel selected runs"), permissions=["cancel"])
    def cancel_runs(self, request: HttpRequest, queryset: QuerySet[TaskRun]) -> None:
        self._grant_all(request, wishes.CANCEL, queryset)

    def _grant_all(self, request: HttpRequest, wish: Wish, queryset: QuerySet[TaskRun]) -> None:
        rows = list(queryset.prefetch_related(None).only("pk", "task")[: wishes.MOST + 1])
        self.grant(request, wish, rows[: wishes.MOST])
        if len(rows) > wishes.MOST:
            text = _("There are more: an action takes the newest %(number)d runs at a time. Do it again for the rest.")
            self.message_user(request, text % {"number": wishes.MOST}, messages.WARNING)

    def grant(self, request: HttpRequest, wish: Wish, rows: Iterable[Any]) -> None:
        wishes.tell(request, wishes.grant(request, wish, rows))

    def stands(self, row: Any) -> tuple[SafeString, str]:
        return wording.status(row), runs.why(row)
