"""Backups and restore drills: what is stored, and what is proven to restore."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from machinequeue.admin import wording
from machinequeue.admin.readonly import ReadOnlyAdmin
from machinequeue.lifecycle import BackupStatus
from machinequeue.models import Backup, RestoreDrill
from machinequeue.records import backups


class BackupList(ChangeList):
    """The rows of a page, each with its newest drill."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        page: list[Any] = list(self.result_list)
        drills = backups.drills_of([backup.pk for backup in page])
        for backup in page:
            backup.newest_drill = drills.get(backup.pk)
        self.result_list = page  # a list serves as well as a queryset


@admin.register(Backup)
class BackupAdmin(ReadOnlyAdmin):
    list_display = ("backup", "stands", "made", "size", "took", "proof")
    list_display_links = None
    ordering = ("-pk",)
    list_filter = ("status", "kind", "database")
    search_fields = ("name",)
    search_help_text = gettext_lazy("Part of a backup’s name.")
    change_form_template = "machinequeue/admin/page.html"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("kind", "database", "server_version"),
                    ("stands_at", "made_at", "took"),
                    ("size", "compressed", "encrypted"),
                    ("proof", "removed", "its_run"),
                    "sha256",
                    "error_text",
                    "drills_text",
                    "rows_text",
                )
            },
        ),
    )
    readonly_fields = (
        "stands_at",
        "made_at",
        "took",
        "size",
        "proof",
        "removed",
        "its_run",
        "error_text",
        "drills_text",
        "rows_text",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("run")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return BackupList

    @admin.display(description=gettext_lazy("backup"))
    def backup(self, backup: Backup) -> SafeString:
        what = backup.database if backup.kind == "database" else backup.get_kind_display()
        return wording.with_note(backup_link(backup), what)

    @admin.display(description=gettext_lazy("state"))
    def stands_at(self, backup: Backup) -> SafeString:
        if backup.status == BackupStatus.SUCCEEDED and backup.removed_at is not None:
            return wording.badge(_("No longer stored"), "quiet")
        return wording.status(backup)

    @admin.display(description=gettext_lazy("state"))
    def stands(self, backup: Backup) -> SafeString:
        return wording.with_note(self.stands_at(backup), wording.one_line(backup.error, longest=160), "mq-bad")

    @admin.display(description=gettext_lazy("made"))
    def made(self, backup: Any) -> SafeString:
        return wording.with_note(wording.clock(backup.started_at, backup.now), self._ago(backup))

    def _ago(self, backup: Any) -> str:
        return wording.ago(backup.started_at, backup.now)

    @admin.display(description=gettext_lazy("made"))
    def made_at(self, backup: Any) -> str:
        return f"{wording.when(backup.started_at)} ({self._ago(backup)})"

    @admin.display(description=gettext_lazy("size"))
    def size(self, backup: Backup) -> str:
        return wording.NOTHING if backup.size_bytes is None else filesizeformat(backup.size_bytes)

    @admin.display(description=gettext_lazy("took"))
    def took(self, backup: Backup) -> str:
        return wording.duration(backup.seconds)

    @admin.display(description=gettext_lazy("restores"))
    def proof(self, backup: Any) -> SafeString | str:
        drill = _newest_drill(backup)
        if drill is None:
            stored = backup.status == BackupStatus.SUCCEEDED and backup.removed_at is None
            return wording.badge(_("Never tried"), "warn") if stored else wording.NOTHING
        note = wording.one_line(drill.reason, longest=120)
        return wording.with_note(drill_link(drill), note, "mq-bad" if drill.status == "failed" else "")

    @admin.display(description=gettext_lazy("removed"))
    def removed(self, backup: Backup) -> str:
        return wording.when(backup.removed_at)

    @admin.display(description=gettext_lazy("run"))
    def its_run(self, backup: Any) -> SafeString | str:
        return wording.run_link(backup.run) if backup.run is not None else wording.NOTHING

    @admin.display(description=gettext_lazy("error"))
    def error_text(self, backup: Backup) -> SafeString | str:
        return wording.block(backup.error) if backup.error else wording.NOTHING

    @admin.display(description=gettext_lazy("restore drills"))
    def drills_text(self, backup: Any) -> SafeString | str:
        drills = backup.drills.order_by("-pk")[:20]
        return wording.lines([format_html("{} {}", drill_link(each), wording.when(each.started_at)) for each in drills])

    @admin.display(description=gettext_lazy("rows by table"))
    def rows_text(self, backup: Backup) -> SafeString | str:
        return wording.pretty(backup.counts) if backup.counts else wording.NOTHING


@admin.register(RestoreDrill)
class DrillAdmin(ReadOnlyAdmin):
    list_display = ("drill", "its_backup", "made", "took", "method")
    list_display_links = None
    ordering = ("-pk",)
    list_filter = ("status",)
    change_form_template = "machinequeue/admin/page.html"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("stands_at", "its_backup", "method"),
                    ("made_at", "took", "its_run"),
                    "reason_text",
                    "differences_text",
                )
            },
        ),
    )
    readonly_fields = (
        "stands_at",
        "its_backup",
        "made_at",
        "took",
        "its_run",
        "reason_text",
        "differences_text",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("run", "backup")

    @admin.display(description=gettext_lazy("restores"))
    def drill(self, drill: RestoreDrill) -> SafeString:
        look = "mq-bad" if drill.status == "failed" else ""
        return wording.with_note(drill_link(drill), wording.one_line(drill.reason, longest=160), look)

    @admin.display(description=gettext_lazy("restores"))
    def stands_at(self, drill: RestoreDrill) -> SafeString:
        return wording.status(drill)

    @admin.display(description=gettext_lazy("backup"))
    def its_backup(self, drill: RestoreDrill) -> SafeString:
        return backup_link(drill.backup)

    @admin.display(description=gettext_lazy("tried"))
    def made(self, drill: Any) -> SafeString:
        return wording.with_note(wording.clock(drill.started_at, drill.now), wording.ago(drill.started_at, drill.now))

    @admin.display(description=gettext_lazy("tried"))
    def made_at(self, drill: RestoreDrill) -> str:
        return wording.when(drill.started_at)

    @admin.display(description=gettext_lazy("took"))
    def took(self, drill: RestoreDrill) -> str:
        return wording.duration(drill.seconds)

    @admin.display(description=gettext_lazy("run"))
    def its_run(self, drill: Any) -> SafeString | str:
        return wording.run_link(drill.run) if drill.run is not None else wording.NOTHING

    @admin.display(description=gettext_lazy("reason"))
    def reason_text(self, drill: RestoreDrill) -> SafeString | str:
        return wording.block(drill.reason) if drill.reason else wording.NOTHING

    @admin.display(description=gettext_lazy("differences"))
    def differences_text(self, drill: RestoreDrill) -> SafeString | str:
        return wording.pretty(drill.differences) if drill.differences else wording.NOTHING


def _newest_drill(backup: Any) -> RestoreDrill | None:
    """The drill that the list brought; asked for here where it did not."""
    if not hasattr(backup, "newest_drill"):
        backup.newest_drill = backups.drills_of([backup.pk]).get(backup.pk)
    drill: RestoreDrill | None = backup.newest_drill
    return drill


def backup_link(backup: Backup) -> SafeString:
    """To the backup's page."""
    address = reverse("admin:machinequeue_backup_change", args=[backup.pk])
    return format_html('<a href="{}" class="mq-name">{}</a>', address, backup.name or _("without a name"))


def drill_link(drill: RestoreDrill) -> SafeString:
    """The drill's status, to its page."""
    address = reverse("admin:machinequeue_restoredrill_change", args=[drill.pk])
    return format_html('<a href="{}">{}</a>', address, wording.status(drill))
