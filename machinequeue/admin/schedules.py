"""Schedules: when each is due next, what became of its last ticks; edit, run now, pause, resume, as the code says."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from django.contrib import admin, messages
from django.db import IntegrityError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from machinequeue import schedules, timetable
from machinequeue.admin import wording
from machinequeue.admin.asking import AskingAdmin, Wish, grant_each
from machinequeue.admin.schedule_form import ScheduleForm
from machinequeue.compat import InvalidTask
from machinequeue.errors import MachineQueueError
from machinequeue.models import Schedule, ScheduleTick
from machinequeue.records import schedules as rows

NEXT_TIMES = 5
LAST_TICKS = 10
LATE_SECONDS = 60

RUN_NOW = Wish(
    name="run_now",
    permission="run_schedule",
    verb=gettext_lazy("Run now"),
    question=gettext_lazy("Run this schedule now?"),
    consequence=gettext_lazy("One more run is enqueued. The times of the schedule stay as they are."),
    act=lambda row: schedules.run_now(row) is not None,
    fits=lambda row: True,
)
PAUSE = Wish(
    name="pause",
    permission="pause_schedule",
    verb=gettext_lazy("Pause"),
    question=gettext_lazy("Pause this schedule?"),
    consequence=gettext_lazy("Nothing is enqueued until it is resumed. What falls into the pause is left out."),
    act=lambda row: rows.set_paused(row.pk, paused=True),
    fits=lambda row: row.paused_at is None,
)
RESUME = Wish(
    name="resume",
    permission="pause_schedule",
    verb=gettext_lazy("Resume"),
    question=gettext_lazy("Resume this schedule?"),
    consequence=gettext_lazy("It goes on with its next time from now."),
    act=lambda row: rows.set_paused(row.pk, paused=False),
    fits=lambda row: row.paused_at is not None,
)
RESTORE = Wish(
    name="restore",
    permission="change_schedule",
    verb=gettext_lazy("As the code says"),
    question=gettext_lazy("Let what the code says count again?"),
    consequence=gettext_lazy("What was edited here is lost."),
    act=lambda row: rows.restore(row.pk),
    fits=lambda row: row.edited,
)
_LOGGED = {"run_now": "Ran now.", "pause": "Paused.", "resume": "Resumed.", "restore": "Restored what the code says."}


class OriginFilter(admin.SimpleListFilter):
    title = gettext_lazy("origin")
    parameter_name = "origin"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, Any]]:
        return [("code", _("Code")), ("edited", _("Edited")), ("hand", _("By hand"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen: dict[str | None, dict[str, Any]] = {
            "code": {"declared__isnull": False, "edited": False},
            "edited": {"edited": True},
            "hand": {"declared__isnull": True},
        }
        return queryset.filter(**chosen.get(self.value(), {}))


@admin.register(Schedule)
class ScheduleAdmin(AskingAdmin):
    form = ScheduleForm
    list_display = ("schedule_name", "times", "status", "origin", "next_time", "last_time")
    ordering = ("name",)
    list_filter = (OriginFilter, "enabled")
    search_fields = ("name", "task")
    search_help_text = gettext_lazy("Part of a name, or of a task’s name.")
    actions = ("run_schedules", "pause_schedules", "resume_schedules")
    offers: ClassVar[tuple[Wish, ...]] = (RUN_NOW, PAUSE, RESUME, RESTORE)
    change_form_template = "machinequeue/admin/schedule.html"
    fieldsets = (
        (None, {"fields": ("name", "task", "enabled")}),
        (gettext_lazy("When"), {"fields": ("cron", "every_seconds", "at", "timezone", "start_at", "end_at")}),
        (gettext_lazy("Call"), {"fields": ("args", "kwargs")}),
        (
            gettext_lazy("Runs"),
            {
                "fields": (
                    "queue",
                    "options",
                    "jitter_seconds",
                    "misfire",
                    "misfire_limit",
                    "max_running",
                )
            },
        ),
    )

    # Who may do what; AskingAdmin's rows are read-only, these are not -------------------------------------------------

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("machinequeue.add_schedule")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("machinequeue.change_schedule")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """One by one, and not what the code declares: it would be there again within a minute."""
        mine = obj is not None and (obj.declared is None or obj.withdrawn_at is not None)
        return mine and request.user.has_perm("machinequeue.delete_schedule")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("name",) if obj is not None else ()

    def has_run_permission(self, request: HttpRequest) -> bool:
        return self.may(request, RUN_NOW.permission)

    def has_pause_permission(self, request: HttpRequest) -> bool:
        return self.may(request, PAUSE.permission)

    # Writing goes through the records --------------------------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            rows.edit(obj.pk, form.entry())
            return
        made = rows.create(obj.name, form.entry())
        if made is None:
            raise IntegrityError(f"Another schedule {obj.name!r} was made at this moment.")
        obj.pk = made.pk

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        rows.delete(obj.pk)

    # The list --------------------------------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("name"))
    def schedule_name(self, row: Schedule) -> SafeString:
        return wording.with_note(row.name, row.task if row.task != row.name else "")

    @admin.display(description=gettext_lazy("due"))
    def times(self, row: Schedule) -> SafeString | str:
        if row.every_seconds is not None:
            return _("every %(duration)s") % {"duration": wording.duration(row.every_seconds)}
        if row.at is not None:
            return _("once")
        return wording.with_note(row.cron, row.timezone)

    @admin.display(description=gettext_lazy("status"))
    def status(self, row: Any) -> SafeString:
        badge, why = self.stands(row)
        return wording.with_note(badge, wording.one_line(why) if row.last_error else "", "mq-bad")

    @admin.display(description=gettext_lazy("origin"))
    def origin(self, row: Schedule) -> SafeString:
        if row.declared is None:
            return wording.badge(_("By hand"), "quiet")
        return wording.badge(_("Edited"), "warn") if row.edited else wording.badge(_("Code"), "quiet")

    @admin.display(description=gettext_lazy("next"))
    def next_time(self, row: Schedule) -> SafeString | str:
        if not rows.is_live(row) or row.next_at is None:
            return wording.NOTHING
        moment, _blank, zone = _in_zone(row, row.next_at).rpartition(" ")
        return wording.with_note(format_html('<span class="mq-moment">{}</span>', moment), zone)

    @admin.display(description=gettext_lazy("last tick"))
    def last_time(self, row: Any) -> SafeString | str:
        if row.last_due_at is None:
            return wording.NOTHING
        late = row.last_lateness or 0.0
        note = _("%(duration)s late") % {"duration": wording.duration(late)} if late >= LATE_SECONDS else ""
        return wording.with_note(wording.ago(row.last_due_at, row.now), note)

    # The page --------------------------------------------------------------------------------------------------------

    def page(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        if row is None:
            return {}
        badge, why = self.stands(row)
        more = {
            "badge": badge,
            "why": why,
            "origin": self.origin(row),
            "ticks": _ticks(row),
            "upcoming": _upcoming(row),
        }
        return {**super().page(request, row), **more, "zone": row.timezone, "differences": _differences(row)}

    def stands(self, row: Any) -> tuple[SafeString, str]:
        if row.withdrawn_at is not None:
            text = _("The code does not declare it any more. Edit and save it to keep it as your own.")
            return wording.badge(_("Gone from the code"), "warn"), text
        if not row.enabled:
            return wording.badge(_("Disabled"), "quiet"), ""
        if row.paused_at is not None:
            return wording.badge(_("Paused"), "warn"), _("since %(moment)s") % {"moment": wording.when(row.paused_at)}
        if row.last_error:
            return wording.badge(_("Failing"), "bad"), row.last_error
        if row.next_at is None:
            return wording.badge(_("Over"), "quiet"), _("No more times.")
        late = (row.now - row.next_at).total_seconds()
        if late > LATE_SECONDS:
            text = _("Its tick is %(duration)s late: is a dispatcher running?") % {"duration": wording.duration(late)}
            return wording.badge(_("Late"), "bad"), text
        return wording.badge(_("On"), "good"), _("Next: %(moment)s") % {"moment": _in_zone(row, row.next_at)}

    # Wishes ----------------------------------------------------------------------------------------------------------

    @admin.action(description=gettext_lazy("Run now"), permissions=["run"])
    def run_schedules(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> None:
        self.grant(request, RUN_NOW, queryset)

    @admin.action(description=gettext_lazy("Pause"), permissions=["pause"])
    def pause_schedules(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> None:
        self.grant(request, PAUSE, queryset)

    @admin.action(description=gettext_lazy("Resume"), permissions=["pause"])
    def resume_schedules(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> None:
        self.grant(request, RESUME, queryset)

    def grant(self, request: HttpRequest, wish: Wish, rows: Iterable[Any]) -> None:
        if changed := grant_each(request, self._told(request, wish.act), rows, _LOGGED[wish.name]):
            self.message_user(request, _says(wish, changed) % changed, messages.SUCCESS)
        elif not messages.get_messages(request):
            self.message_user(request, _("Nothing changed: they were so already."), messages.WARNING)

    def _told(self, request: HttpRequest, act: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def try_it(row: Any) -> bool:
            try:
                return act(row)
            except (MachineQueueError, InvalidTask) as error:
                self.message_user(request, f"{row.name}: {error}", messages.ERROR)
                return False

        return try_it


def _says(wish: Wish, count: int) -> str:
    return {
        "run_now": ngettext("%d run is enqueued.", "%d runs are enqueued.", count),
        "pause": ngettext("%d schedule is paused.", "%d schedules are paused.", count),
        "resume": ngettext("%d schedule goes on.", "%d schedules go on.", count),
        "restore": ngettext("%d schedule is as the code says.", "%d schedules are as the code says.", count),
    }[wish.name]


def _in_zone(row: Schedule, moment: Any) -> str:
    """A moment as the clock in the schedule's own zone shows it."""
    if moment is None:
        return wording.NOTHING
    try:
        zone: ZoneInfo = timetable.zone(row.timezone)
    except MachineQueueError:
        return wording.when(moment)
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"


def _upcoming(row: Any) -> list[str]:
    try:
        found = timetable.upcoming(rows.rule_of(row), row.now, NEXT_TIMES)
    except MachineQueueError:
        return []
    return [_in_zone(row, moment) for moment in found]


def _ticks(row: Any) -> list[dict[str, Any]]:
    return [
        {"due": _in_zone(row, tick.due_at), "run": _run(tick), "note": tick.note}
        for tick in rows.ticks(row.pk, LAST_TICKS)
    ]


def _run(tick: ScheduleTick) -> SafeString | str:
    if tick.run is None:
        return wording.NOTHING
    address = reverse("admin:machinequeue_taskrun_change", args=[tick.run_id])
    return format_html('{} <a href="{}">{}</a>', wording.status(tick.run), address, str(tick.run_id)[:8])


def _differences(row: Schedule) -> SafeString | str:
    """What the code says where it is something else."""
    if not row.edited or row.declared is None:
        return ""
    counts = rows.entry_of(row).as_json()
    return wording.pretty({name: said for name, said in row.declared.items() if counts.get(name) != said})
