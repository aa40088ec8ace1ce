"""What an operator may wish of a row: a button on its page that asks first, with a permission of its own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.functional import Promise
from django.utils.safestring import SafeString

from machinequeue.admin.readonly import ReadOnlyAdmin
from machinequeue.records import sql


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Something to ask of a row."""

    name: str
    permission: str
    verb: Promise
    question: Promise
    consequence: Promise
    act: Callable[[Any], bool]
    """Does it; False when there was nothing to do."""
    fits: Callable[[Any], bool]
    """Whether the wish makes sense for a row, so that its button is shown."""


class AskingAdmin(ReadOnlyAdmin):
    """Rows of which an operator may wish something."""

    offers: ClassVar[tuple[Wish, ...]]

    def grant(self, request: HttpRequest, wish: Wish, rows: Iterable[Any]) -> None:
        """Make the wish come true for these rows, and tell the operator."""
        raise NotImplementedError

    def stands(self, row: Any) -> tuple[SafeString, str]:
        """A badge and a sentence: how the row stands when the operator is asked."""
        raise NotImplementedError

    def page(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        offered = [wish for wish in self.offers if wish.fits(row) and self.may(request, wish.permission)]
        return {**super().page(request, row), "wishes": offered}

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                f"<path:object_id>/{wish.name}/",
                self.admin_site.admin_view(self._view_of(wish)),
                name=f"{self.opts.app_label}_{self.opts.model_name}_{wish.name}",
            )
            for wish in self.offers
        ]
        return own + super().get_urls()

    def _view_of(self, wish: Wish) -> Callable[..., HttpResponse]:
        def view(request: HttpRequest, object_id: str) -> HttpResponse:
            return self.wish_view(request, wish, object_id)

        return view

    def wish_view(self, request: HttpRequest, wish: Wish, object_id: str) -> HttpResponse:
        """Ask on GET, do it on POST, and go back to the row."""
        if not self.may(request, wish.permission):
            raise PermissionDenied
        row = self.get_object(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        if request.method == "POST":
            self.grant(request, wish, [row])
            address = f"admin:{self.opts.app_label}_{self.opts.model_name}_change"
            return HttpResponseRedirect(reverse(address, args=[row.pk]))
        badge, why = self.stands(row)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": wish.question,
            "wish": wish,
            "original": row,
            "has_view_permission": True,
            "badge": badge,
            "why": why,
            "media": self.media,
        }
        return TemplateResponse(request, "machinequeue/admin/confirm.html", context)


def grant_each(request: HttpRequest, act: Callable[[Any], bool], rows: Iterable[Any], logged: str) -> int:
    """Do it to each row, in a transaction of its own with its log entry; to how many there was something to do."""
    changed = 0
    for row in rows:
        with transaction.atomic(using=sql.alias()):
            if act(row):
                log(request, row, logged)
                changed += 1
    return changed


def log(request: HttpRequest, row: Model, text: str) -> None:
    """Note in the admin's own log who did what to a row."""
    assert request.user.pk is not None
    LogEntry.objects.log_actions(
        user_id=request.user.pk, queryset=[row], action_flag=CHANGE, change_message=text, single_object=True
    )
