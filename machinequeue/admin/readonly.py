"""Pages that show rows and change none, at a cost that does not grow with the number of rows."""

from functools import cached_property
from typing import Any

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse

from machinequeue.records import sql

PAGED_ROWS = 2_000
"""Rows that a list pages through; what is older is found by filter or search."""


class BoundedPaginator(Paginator):
    """Counts up to PAGED_ROWS, so that counting never reads a whole table."""

    rows = PAGED_ROWS

    @cached_property
    def counted(self) -> int:
        assert isinstance(self.object_list, QuerySet)
        return self.object_list.order_by().values("pk")[: self.rows + 1].count()

    @cached_property
    def count(self) -> int:
        return min(self.counted, self.rows)

    @property
    def cut(self) -> bool:
        """Whether there are more rows than it pages through."""
        return self.counted > self.rows


class ReadOnlyAdmin(admin.ModelAdmin):
    """No add, no change, no delete; the newest row first. Every row carries `now`, the database's clock."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    sortable_by = ()
    change_list_template = "machinequeue/admin/list.html"

    class Media:
        css = {"all": ("machinequeue/admin/machinequeue.css",)}
        js = ("machinequeue/admin/live.js",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request).using(sql.alias()).annotate(now=Now())
        return rows

    def page(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the template of a row's page needs beside its fields."""
        return {}

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        return super().render_change_form(request, context | self.page(request, kwargs["obj"]), *args, **kwargs)

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def may(self, request: HttpRequest, permission: str) -> bool:
        """Whether the user has this custom permission and may see the rows that it is about."""
        return self.has_view_permission(request) and request.user.has_perm(f"{self.opts.app_label}.{permission}")
