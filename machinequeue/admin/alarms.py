"""What keeps machines from being launched, above the lists where an operator looks first."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from machinequeue.admin import wording
from machinequeue.admin.readonly import ReadOnlyAdmin
from machinequeue.models import Circuit
from machinequeue.records import circuits, runs

MOST_SHOWN = 3


@dataclass(frozen=True)
class Alarm:
    """An open circuit."""

    name: str
    reason: SafeString | str
    note: str
    address: str
    """Of its page; empty for who may not open it."""


class AlarmedAdmin(ReadOnlyAdmin):
    """A list below the open circuits."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = _alarms(request) if request.method == "GET" else {}
        return super().changelist_view(request, {**context, **(extra_context or {})})


def _alarms(request: HttpRequest) -> dict[str, Any]:
    found = circuits.all_open()
    if not found:
        return {}
    now = runs.database_now()
    may = request.user.has_perm("machinequeue.view_circuit") or request.user.has_perm("machinequeue.change_circuit")
    every = reverse("admin:machinequeue_circuit_changelist") if may else ""
    return {
        "alarms": [_alarm(circuit, now, may) for circuit in found[:MOST_SHOWN]],
        "more_alarms": max(len(found) - MOST_SHOWN, 0),
        "every_alarm": every,
    }


def _alarm(circuit: Circuit, now: datetime, may: bool) -> Alarm:
    note = _("Launches are held back for %(duration)s. Next try: %(next)s.") % {
        "duration": wording.between(circuit.opened_at, now),
        "next": wording.next_launch(circuit, now),
    }
    return Alarm(
        name=circuit.get_kind_display(),
        reason=wording.one_line(circuit.reason, longest=240),
        note=note,
        address=reverse("admin:machinequeue_circuit_change", args=[circuit.pk]) if may else "",
    )
