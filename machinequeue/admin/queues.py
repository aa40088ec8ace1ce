"""Queues: what waits, what runs, why nothing is launched, and the actions pause and resume."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from machinequeue.admin import wording
from machinequeue.admin.alarms import AlarmedAdmin
from machinequeue.admin.asking import grant_each
from machinequeue.lifecycle import MachineStatus, RunStatus
from machinequeue.models import Circuit, Machine, Queue, TaskRun
from machinequeue.records import circuits, queues, sql


class QueueList(ChangeList):
    """The rows of a page with the numbers of runs and machines of each, in one query for each kind."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        running = _by_lane(_runs(RunStatus.RUNNING))
        machines = _by_lane(Machine.objects.using(sql.alias()).exclude(status=MachineStatus.GONE))
        waiting: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        for backend, name, spec_key, number in _waiting(_runs(RunStatus.READY)):
            waiting[backend, name][spec_key] = number
        page: list[Any] = list(self.result_list)
        held = circuits.all_open()
        for queue in page:
            queue.circuits = held
            lane = (queue.backend, queue.name)
            queue.waiting, queue.running, queue.alive = waiting[lane], running.get(lane, 0), machines.get(lane, 0)
        self.result_list = page  # a list serves as well as a queryset


def _runs(status: RunStatus) -> QuerySet[Any]:
    return TaskRun.objects.using(sql.alias()).filter(status=status)


def _by_lane(rows: QuerySet[Any]) -> dict[tuple[str, str], int]:
    counted = rows.order_by().values_list("backend", "queue").annotate(Count("pk"))
    return {(backend, queue): number for backend, queue, number in counted}


def _waiting(rows: QuerySet[Any]) -> Iterable[tuple[str, str, str, int]]:
    counted = rows.order_by().values_list("backend", "queue", "spec_key").annotate(Count("pk"))
    return [(backend, queue, spec_key, number) for backend, queue, spec_key, number in counted]


@admin.register(Queue)
class QueueAdmin(AlarmedAdmin):
    list_display = ("queue_name", "backend", "stands", "waiting", "running", "machines", "failed_launches", "why")
    ordering = ("backend", "name")
    actions = ("pause_queues", "resume_queues")
    change_form_template = "machinequeue/admin/page.html"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("queue_name", "backend", "stands"),
                    ("paused", "failed_launches", "held_until"),
                    "waiting",
                    "why",
                )
            },
        ),
    )
    readonly_fields = ("queue_name", "stands", "paused", "failed_launches", "held_until", "waiting", "why")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).exclude(name=queues.EVERY_QUEUE)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return QueueList

    @admin.display(description=gettext_lazy("name"))
    def queue_name(self, queue: Queue) -> str:
        return queue.name

    @admin.display(description=gettext_lazy("status"))
    def stands(self, queue: Any) -> SafeString:
        if queue.paused_at:
            return wording.badge(_("Paused"), "warn")
        if (queue.launch_after and queue.launch_after > queue.now) or _is_held(queue):
            return wording.badge(_("Held back"), "bad")
        return wording.badge(_("Open"), "good")

    @admin.display(description=gettext_lazy("paused"))
    def paused(self, queue: Queue) -> str:
        return wording.when(queue.paused_at)

    @admin.display(description=gettext_lazy("no launch before"))
    def held_until(self, queue: Queue) -> str:
        return wording.when(queue.launch_after)

    @admin.display(description=gettext_lazy("waiting"))
    def waiting(self, queue: Any) -> int:
        return sum(_waiting_of(queue).values())

    @admin.display(description=gettext_lazy("running"))
    def running(self, queue: Any) -> int:
        return int(queue.running)

    @admin.display(description=gettext_lazy("machines"))
    def machines(self, queue: Any) -> int:
        return int(queue.alive)

    @admin.display(description=gettext_lazy("launches failed in a row"))
    def failed_launches(self, queue: Queue) -> int:
        return queue.failures

    @admin.display(description=gettext_lazy("why runs wait"))
    def why(self, queue: Queue) -> SafeString | str:
        reasons = {queue.reasons.get(spec_key) for spec_key in _waiting_of(queue)}  # others are of runs long gone
        return wording.lines(sorted(reason for reason in reasons if reason))

    # Pause and resume ------------------------------------------------------------------------------------------------

    def has_pause_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "pause_queue")

    @admin.action(description=gettext_lazy("Pause selected queues"), permissions=["pause"])
    def pause_queues(self, request: HttpRequest, queryset: QuerySet[Queue]) -> None:
        changed = self._set_paused(request, queryset, paused=True)
        text = ngettext(
            "%d queue is paused. Its running runs go on; no other starts.",
            "%d queues are paused. Their running runs go on; no other starts.",
            changed,
        )
        self._tell(request, text % changed, changed)

    @admin.action(description=gettext_lazy("Resume selected queues"), permissions=["pause"])
    def resume_queues(self, request: HttpRequest, queryset: QuerySet[Queue]) -> None:
        changed = self._set_paused(request, queryset, paused=False)
        self._tell(request, ngettext("%d queue goes on.", "%d queues go on.", changed) % changed, changed)

    def _tell(self, request: HttpRequest, text: str, changed: int) -> None:
        if changed:
            self.message_user(request, text, messages.SUCCESS)
        else:
            self.message_user(request, _("Nothing changed: they were so already."), messages.WARNING)

    def _set_paused(self, request: HttpRequest, rows: Iterable[Queue], *, paused: bool) -> int:
        def act(queue: Queue) -> bool:
            return queues.set_paused(queue.pk, paused=paused)

        return grant_each(request, act, rows, "Paused." if paused else "Resumed.")


def _is_held(queue: Any) -> bool:
    """Whether an open circuit holds back what the queue's runs wait for."""
    held: list[Circuit] = queue.circuits if hasattr(queue, "circuits") else circuits.all_open()
    return any(not circuit.image or circuit.spec_key in _waiting_of(queue) for circuit in held)


def _waiting_of(queue: Any) -> dict[str, int]:
    """READY runs by spec key; asked for here where the list did not bring them."""
    if not hasattr(queue, "waiting"):
        rows = _runs(RunStatus.READY).filter(backend=queue.backend, queue=queue.name)
        queue.waiting = {spec_key: number for _backend, _name, spec_key, number in _waiting(rows)}
    waiting: dict[str, int] = queue.waiting
    return waiting
