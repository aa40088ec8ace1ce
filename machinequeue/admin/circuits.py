"""Circuits: what keeps machines from being launched, and the wish to try again now."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import Count, F, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from machinequeue.admin import wording
from machinequeue.admin.asking import AskingAdmin, Wish, grant_each
from machinequeue.lifecycle import RunStatus
from machinequeue.models import Circuit, TaskRun
from machinequeue.records import circuits, sql

TRY_AGAIN = Wish(
    name="try_again",
    permission="change_circuit",
    verb=gettext_lazy("Try again now"),
    question=gettext_lazy("Try to launch again now?"),
    consequence=gettext_lazy(
        "One machine is launched for a run that waits. When that works, the others follow; "
        "when it fails, launches pause again."
    ),
    act=lambda circuit: circuits.retry_now(circuit.pk),
    fits=lambda circuit: circuit.next_at > circuit.now,
)


class CircuitList(ChangeList):
    """The rows of a page with the specs that they are about and the runs that wait for them."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        page: list[Any] = list(self.result_list)
        _add_waiting(page)
        self.result_list = page  # a list serves as well as a queryset


@admin.register(Circuit)
class CircuitAdmin(AskingAdmin):
    list_display = ("kind_and_reason", "stands_since", "concerns", "waiting", "next_and_failures")
    list_display_links = None
    ordering = (F("opened_at").desc(nulls_last=True), "-pk")
    actions = ("try_again",)
    offers = (TRY_AGAIN,)
    change_form_template = "machinequeue/admin/page.html"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("kind", "stands_at", "waiting"),
                    ("failures", "first_failure", "opened"),
                    ("next_launch", "size", "spec_key"),
                    "image_name",
                    "reason_text",
                )
            },
        ),
    )
    readonly_fields = (
        "stands_at",
        "waiting",
        "first_failure",
        "opened",
        "next_launch",
        "size",
        "image_name",
        "reason_text",
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return CircuitList

    def page(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {**super().page(request, row), "live": True, "subtitle": row.get_kind_display()}

    @admin.display(description=gettext_lazy("what fails"))
    def kind_and_reason(self, circuit: Circuit) -> SafeString:
        return wording.with_note(wording.circuit_link(circuit), wording.one_line(circuit.reason, longest=240), "mq-bad")

    @admin.display(description=gettext_lazy("launches"))
    def stands_at(self, circuit: Circuit) -> SafeString:
        if circuit.opened_at is None:
            return wording.badge(_("Trying again"), "warn")
        return wording.badge(_("Held back"), "bad")

    @admin.display(description=gettext_lazy("launches"))
    def stands_since(self, circuit: Any) -> SafeString:
        since = _("for %(duration)s") % {"duration": wording.between(circuit.opened_at or circuit.since, circuit.now)}
        return wording.with_note(self.stands_at(circuit), since)

    @admin.display(description=gettext_lazy("concerns"))
    def concerns(self, circuit: Any) -> SafeString | str:
        if not circuit.image:
            return _("every launch")
        return wording.with_note(wording.image(circuit.image), self.size(circuit) if circuit.spec_key else "")

    @admin.display(description=gettext_lazy("size"))
    def size(self, circuit: Any) -> str:
        spec = _with_waiting(circuit).asked
        return wording.size(spec) if spec else circuit.spec_key or wording.NOTHING

    @admin.display(description=gettext_lazy("image"))
    def image_name(self, circuit: Circuit) -> str:
        return circuit.image or wording.NOTHING

    @admin.display(description=gettext_lazy("runs that wait"))
    def waiting(self, circuit: Any) -> str:
        number = _with_waiting(circuit).waiting
        return wording.NOTHING if number is None else str(number)

    @admin.display(description=gettext_lazy("first failure"))
    def first_failure(self, circuit: Circuit) -> str:
        return wording.when(circuit.since)

    @admin.display(description=gettext_lazy("held back since"))
    def opened(self, circuit: Circuit) -> str:
        return wording.when(circuit.opened_at)

    @admin.display(description=gettext_lazy("next launch"))
    def next_launch(self, circuit: Any) -> str:
        return wording.next_launch(circuit, circuit.now)

    @admin.display(description=gettext_lazy("next launch"))
    def next_and_failures(self, circuit: Any) -> SafeString:
        failed = ngettext("%d failed", "%d failed in a row", circuit.failures) % circuit.failures
        return wording.with_note(self.next_launch(circuit), failed)

    @admin.display(description=gettext_lazy("reason"))
    def reason_text(self, circuit: Circuit) -> SafeString:
        return wording.block(circuit.reason)

    # Try again -------------------------------------------------------------------------------------------------------

    def has_try_again_permission(self, request: HttpRequest) -> bool:
        return self.may(request, TRY_AGAIN.permission)

    @admin.action(description=gettext_lazy("Try again now"), permissions=["try_again"])
    def try_again(self, request: HttpRequest, queryset: QuerySet[Circuit]) -> None:
        self.grant(request, TRY_AGAIN, queryset)

    def grant(self, request: HttpRequest, wish: Wish, rows: Iterable[Any]) -> None:
        if changed := grant_each(request, wish.act, rows, "Tried again now."):
            text = ngettext(
                "%d launch is tried again as soon as a run waits for it.",
                "%d launches are tried again as soon as runs wait for them.",
                changed,
            )
            self.message_user(request, text % changed, messages.SUCCESS)
        else:
            self.message_user(request, _("Nothing changed: a launch was due already."), messages.WARNING)

    def stands(self, row: Any) -> tuple[SafeString, str]:
        return self.stands_at(row), row.reason


# What waits ----------------------------------------------------------------------------------------------------------


def _with_waiting(circuit: Any) -> Any:
    """The circuit with `waiting` and `asked`; asked for here where the list did not bring them."""
    if not hasattr(circuit, "waiting"):
        _add_waiting([circuit])
    return circuit


def _add_waiting(page: list[Any]) -> None:
    """Give each circuit the number of runs that wait for its launches, and the spec that they ask for.

    Which runs wait for an image, the row does not say: None.
    """
    ready = TaskRun.objects.using(sql.alias()).filter(status=RunStatus.READY).order_by()
    number = dict(ready.values_list("spec_key").annotate(Count("pk")))
    keys = {circuit.spec_key for circuit in page if circuit.spec_key}
    asked = dict(ready.filter(spec_key__in=keys).values_list("spec_key", "spec").distinct()) if keys else {}
    for circuit in page:
        about_all = sum(number.values()) if not circuit.image else None
        circuit.waiting = number.get(circuit.spec_key, 0) if circuit.spec_key else about_all
        circuit.asked = asked.get(circuit.spec_key)
