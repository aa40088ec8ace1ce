"""The state of the system at a glance, above the list of runs. Every count is bounded."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from machinequeue.admin import search, wording
from machinequeue.lifecycle import MachineStatus, RunStatus
from machinequeue.models import Dispatcher, Machine, TaskRun
from machinequeue.records import runs, sql

LONGEST_COUNT = 1_000


@dataclass(frozen=True)
class Figure:
    """A number with its name, what to know beside it, and where a click leads."""

    name: str
    number: str
    note: str
    address: str
    alarm: bool = False


def figures() -> list[Figure]:
    """Waiting, running, failed today, machines, dispatchers: in eight queries or fewer."""
    return [_waiting(), _running(), _failed(), _machines(), _dispatchers()]


def _rows(model: Any) -> QuerySet[Any]:
    rows: QuerySet[Any] = model.objects.using(sql.alias())
    return rows


def _bounded(rows: QuerySet[Any]) -> str:
    number = rows.order_by().values("pk")[: LONGEST_COUNT + 1].count()
    return f"{LONGEST_COUNT}+" if number > LONGEST_COUNT else str(number)


def _list(model: str, **filters: str) -> str:
    return reverse(f"admin:machinequeue_{model}_changelist") + (f"?{urlencode(filters)}" if filters else "")


def _waiting() -> Figure:
    oldest = runs.due().annotate(now=Now()).order_by("run_after").values_list("run_after", "now").first()
    note = _("oldest due for %(duration)s") % {"duration": wording.between(*oldest)} if oldest else _("none is due")
    number = _bounded(_rows(TaskRun).filter(status=RunStatus.READY))
    return Figure(_("waiting"), number, note, _list("taskrun", status__exact=RunStatus.READY))


def _running() -> Figure:
    rows = _rows(TaskRun).filter(status=RunStatus.RUNNING)
    asked = rows.filter(cancel_requested_at__isnull=False)[:LONGEST_COUNT].count()
    note = _("%(number)d asked to stop") % {"number": asked} if asked else ""
    return Figure(_("running"), _bounded(rows), note, _list("taskrun", status__exact=RunStatus.RUNNING))


def _failed() -> Figure:
    recent = _rows(TaskRun).filter(search.id_since(timezone.now() - timedelta(days=1)), status=RunStatus.FAILED)
    number = _bounded(recent)
    address = _list("taskrun", status__exact=RunStatus.FAILED, enqueued="day")
    return Figure(_("failed"), number, _("enqueued in the past 24 hours"), address, alarm=number != "0")


def _machines() -> Figure:
    alive = _rows(Machine).exclude(status=MachineStatus.GONE)
    busy = alive.filter(status=MachineStatus.BUSY)[:LONGEST_COUNT].count()
    note = _("%(number)d busy") % {"number": busy}
    number = _bounded(alive)
    name = _("machine") if number == "1" else _("machines")
    return Figure(name, number, note, _list("machine", life="alive"))


def _dispatchers() -> Figure:
    alive = _rows(Dispatcher).filter(seen_at__gte=Now() - runs.DISPATCHER_SILENT)
    number = alive.count()
    leads = alive.filter(Q(leads_until__gt=Now())).exists()
    note = "" if leads else _("none leads") if number else _("start manage.py mq_dispatcher")
    name = _("dispatcher") if number == 1 else _("dispatchers")
    return Figure(name, str(number), note, _list("dispatcher"), alarm=number == 0)
