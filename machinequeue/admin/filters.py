"""Filters whose choices come from small tables and recent rows, never from all of them."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin import ModelAdmin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from machinequeue.admin import search
from machinequeue.models import Queue, TaskProfile, TaskRun
from machinequeue.records import queues, sql

RECENT = 500
"""Newest runs whose tasks are offered as choices, beside those that ever succeeded."""

_PAST = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
    "month": timedelta(days=30),
}


class _ChosenStays(admin.SimpleListFilter):
    """Offers what the address asks for even where it is not among the choices."""

    field: str

    def known(self) -> Iterable[str]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:
        chosen = self.value()
        return [(name, self.says(name)) for name in sorted({*self.known(), *([chosen] if chosen else [])})]

    def says(self, name: str) -> str:
        return name

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(**{self.field: self.value()}) if self.value() else queryset


class QueueFilter(_ChosenStays):
    title = _("queue")
    parameter_name = field = "queue"

    def known(self) -> Iterable[str]:
        rows = Queue.objects.using(sql.alias()).exclude(name=queues.EVERY_QUEUE)
        return rows.values_list("name", flat=True)


class TaskFilter(_ChosenStays):
    title = _("task")
    parameter_name = field = "task"

    def known(self) -> Iterable[str]:
        database = sql.alias()
        recent = TaskRun.objects.using(database).order_by("-pk").values_list("task", flat=True)[:RECENT]
        succeeded = TaskProfile.objects.using(database).values_list("task", flat=True)[:RECENT]
        return {*recent, *succeeded}

    def says(self, name: str) -> str:
        return name.rpartition(".")[2]


class EnqueuedFilter(admin.SimpleListFilter):
    title = _("enqueued")
    parameter_name = "enqueued"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, Any]]:
        return [
            ("hour", _("Past hour")),
            ("day", _("Past 24 hours")),
            ("week", _("Past 7 days")),
            ("month", _("Past 30 days")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        past = _PAST.get(self.value() or "")
        return queryset if past is None else queryset.filter(search.id_since(timezone.now() - past))
