"""Machines: the list, and a machine's page with its life, its end and its attempts."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from machinequeue.admin import timings, wording
from machinequeue.admin.alarms import AlarmedAdmin
from machinequeue.admin.filters import QueueFilter
from machinequeue.lifecycle import MachineStatus
from machinequeue.models import Attempt, Machine
from machinequeue.records import sql

ATTEMPTS_SHOWN = 100
_SHOWN = (
    "run__task",
    "epoch",
    "status",
    "claimed_at",
    "finished_at",
    "seconds",
    "peak_memory_mb",
    "diagnosis",
)


class LifeFilter(admin.SimpleListFilter):
    title = gettext_lazy("life")
    parameter_name = "life"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [("alive", _("Not gone")), ("gone", _("Gone"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "alive":
            return queryset.exclude(status=MachineStatus.GONE)
        return queryset.filter(status=MachineStatus.GONE) if self.value() == "gone" else queryset


@admin.register(Machine)
class MachineAdmin(AlarmedAdmin):
    list_display = (
        "status_and_state",
        "machine_name",
        "queue",
        "size_and_region",
        "runs",
        "launched_time",
        "boot",
        "life",
        "exit",
    )
    list_display_links = None
    list_filter = (LifeFilter, "status", QueueFilter, ("reserved_at", admin.DateFieldListFilter))
    search_fields = ("name__istartswith", "fly_id__istartswith")
    search_help_text = gettext_lazy("The beginning of a name or of a Fly id.")
    change_form_template = "machinequeue/admin/machine.html"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("state_word", "fly", "app"),
                    ("queue", "size", "region_word"),
                    ("runs", "for_run"),
                    "image",
                )
            },
        ),
        (
            gettext_lazy("Times"),
            {
                "fields": (
                    ("reserved", "launched", "created"),
                    ("started", "checked_in", "seen"),
                    ("gone", "deadline"),
                    ("boot", "life"),
                    "boot_stages",
                )
            },
        ),
        (gettext_lazy("End"), {"fields": ("exit", "exit_json")}),
        (
            gettext_lazy("For support"),
            {"fields": ("request_id_lines", "spec_json", ("spec_key", "boot_id", "backend")), "classes": ("collapse",)},
        ),
    )
    readonly_fields = (
        "state_word",
        "fly",
        "size",
        "region_word",
        "for_run",
        "reserved",
        "launched",
        "created",
        "started",
        "checked_in",
        "seen",
        "gone",
        "boot",
        "life",
        "deadline",
        "boot_stages",
        "exit",
        "exit_json",
        "request_id_lines",
        "spec_json",
    )

    @admin.display(description=gettext_lazy("status"))
    def status_and_state(self, machine: Machine) -> SafeString:
        badge = wording.with_note(wording.status(machine), machine.state)
        if machine.status != MachineStatus.RETIRING:
            return badge
        return wording.with_note(badge, wording.one_line(machine.reason))

    @admin.display(description=gettext_lazy("size, region"))
    def size_and_region(self, machine: Machine) -> SafeString:
        return wording.with_note(self.size(machine), machine.region)

    @admin.display(description=gettext_lazy("name"))
    def machine_name(self, machine: Machine) -> SafeString:
        return wording.with_note(wording.machine_link(machine), wording.fly_link(machine))

    @admin.display(description=gettext_lazy("launched"))
    def launched_time(self, machine: Any) -> SafeString:
        return wording.clock(machine.requested_at or machine.reserved_at, machine.now)

    @admin.display(description=gettext_lazy("Fly id"))
    def fly(self, machine: Machine) -> SafeString | str:
        return wording.fly_link(machine)

    @admin.display(description=gettext_lazy("Fly state"))
    def state_word(self, machine: Machine) -> str:
        return machine.state or wording.NOTHING

    @admin.display(description=gettext_lazy("size"))
    def size(self, machine: Machine) -> str:
        return wording.size(machine.spec)

    @admin.display(description=gettext_lazy("region"))
    def region_word(self, machine: Machine) -> str:
        return machine.region or wording.NOTHING

    @admin.display(description=gettext_lazy("launched for"))
    def for_run(self, machine: Machine) -> SafeString | str:
        return wording.run_link(machine.launched_for) if machine.launched_for else wording.NOTHING

    # Times -----------------------------------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("boot"))
    def boot(self, machine: Machine) -> str:
        return wording.between(machine.requested_at, machine.booted_at)

    @admin.display(description=gettext_lazy("life"))
    def life(self, machine: Any) -> str:
        return wording.between(machine.requested_at or machine.reserved_at, machine.gone_at or machine.now)

    @admin.display(description=gettext_lazy("reserved"))
    def reserved(self, machine: Machine) -> str:
        return wording.when(machine.reserved_at)

    @admin.display(description=gettext_lazy("launched"))
    def launched(self, machine: Machine) -> str:
        return wording.when(machine.requested_at)

    @admin.display(description=gettext_lazy("created"))
    def created(self, machine: Machine) -> str:
        return wording.when(machine.created_at)

    @admin.display(description=gettext_lazy("started"))
    def started(self, machine: Machine) -> str:
        return wording.when(machine.started_at)

    @admin.display(description=gettext_lazy("checked in"))
    def checked_in(self, machine: Machine) -> str:
        return wording.when(machine.booted_at)

    @admin.display(description=gettext_lazy("seen"))
    def seen(self, machine: Machine) -> str:
        return wording.when(machine.seen_at)

    @admin.display(description=gettext_lazy("gone"))
    def gone(self, machine: Machine) -> str:
        return wording.when(machine.gone_at)

    @admin.display(description=gettext_lazy("deadline"))
    def deadline(self, machine: Machine) -> str:
        return wording.when(machine.deadline_at)

    @admin.display(description=gettext_lazy("stages of its start"))
    def boot_stages(self, machine: Machine) -> str:
        return wording.stages(machine.stages)

    # Its end ---------------------------------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("exit"))
    def exit(self, machine: Machine) -> str:
        return wording.exit_in_words(machine.exit_event)

    @admin.display(description=gettext_lazy("exit event"))
    def exit_json(self, machine: Machine) -> SafeString | str:
        return wording.pretty(machine.exit_event) if machine.exit_event else wording.NOTHING

    @admin.display(description=gettext_lazy("Fly request ids"))
    def request_id_lines(self, machine: Machine) -> SafeString | str:
        return wording.lines(machine.request_ids)

    @admin.display(description=gettext_lazy("spec"))
    def spec_json(self, machine: Machine) -> SafeString:
        return wording.pretty(machine.spec)

    def page(self, request: HttpRequest, machine: Any) -> dict[str, Any]:
        rows = Attempt.objects.using(sql.alias()).filter(machine=machine).select_related("run").only(*_SHOWN)
        newest = list(rows.order_by("-pk")[: ATTEMPTS_SHOWN + 1])
        return {
            "badge": wording.status(machine),
            "why": _why(machine),
            "attempts": [_attempt(attempt, machine.now) for attempt in newest[:ATTEMPTS_SHOWN]],
            "attempts_cut": len(newest) > ATTEMPTS_SHOWN,
            "attempts_shown": ATTEMPTS_SHOWN,
            "live": machine.status != MachineStatus.GONE,
        }


def _why(machine: Machine) -> str:
    """Why a machine goes, or went."""
    if machine.status == MachineStatus.RETIRING:
        return _("It claims nothing more and goes: %(reason)s") % {"reason": machine.reason or _("its work is over")}
    return machine.reason


def _attempt(attempt: Attempt, now: datetime) -> dict[str, Any]:
    return {
        "run": wording.run_link(attempt.run),
        "number": attempt.epoch,
        "badge": wording.status(attempt),
        "claimed": wording.when(attempt.claimed_at),
        "ran": wording.duration(timings.ran(attempt, now)),
        "memory": wording.megabytes(attempt.peak_memory_mb),
        "sentence": wording.one_line((attempt.diagnosis or {}).get("sentence", "")),
    }
