"""Serverless machines: which answer requests, which are on their way, and why one is not."""

from typing import Any

from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy

from machinequeue.admin import wording
from machinequeue.admin.readonly import ReadOnlyAdmin
from machinequeue.lifecycle import ServerlessStatus
from machinequeue.models import ServerlessMachine


@admin.register(ServerlessMachine)
class ServerlessMachineAdmin(ReadOnlyAdmin):
    list_display = ("machine_name", "status_badge", "what", "where", "asked", "booted")
    ordering = ("-pk",)
    list_filter = ("status",)
    change_form_template = "machinequeue/admin/page.html"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("status_badge", "state", "fly", "where"),
                    ("what", "image_name", "failures"),
                    ("wished", "asked", "ready", "booted"),
                    ("retired", "gone"),
                    "what_was_wrong",
                )
            },
        ),
    )
    readonly_fields = (
        "status_badge",
        "state",
        "fly",
        "where",
        "what",
        "image_name",
        "failures",
        "wished",
        "asked",
        "ready",
        "booted",
        "retired",
        "gone",
        "what_was_wrong",
    )

    @admin.display(description=gettext_lazy("name"))
    def machine_name(self, row: ServerlessMachine) -> SafeString:
        return format_html('<span class="mq-name">{}</span>', row.name or row.size_key)

    @admin.display(description=gettext_lazy("status"))
    def status_badge(self, row: ServerlessMachine) -> SafeString:
        wrong = row.status in (ServerlessStatus.WISHED, ServerlessStatus.CREATING) and row.error
        return wording.with_note(wording.status(row), wording.one_line(row.error) if wrong else "")

    @admin.display(description=gettext_lazy("size"))
    def what(self, row: ServerlessMachine) -> str:
        return wording.size(row.size)

    @admin.display(description=gettext_lazy("region"))
    def where(self, row: ServerlessMachine) -> str:
        return row.region or ", ".join(row.size.get("regions") or []) or wording.NOTHING

    @admin.display(description=gettext_lazy("image"))
    def image_name(self, row: ServerlessMachine) -> SafeString:
        return wording.image(row.image)

    @admin.display(description=gettext_lazy("Fly id"))
    def fly(self, row: Any) -> SafeString | str:
        return wording.fly_link(row)

    @admin.display(description=gettext_lazy("wished for"))
    def wished(self, row: Any) -> str:
        return wording.ago(row.wished_at, row.now)

    @admin.display(description=gettext_lazy("asked for last"))
    def asked(self, row: Any) -> str:
        return wording.ago(row.asked_at, row.now)

    @admin.display(description=gettext_lazy("ready"))
    def ready(self, row: Any) -> str:
        return wording.ago(row.ready_at, row.now)

    @admin.display(description=gettext_lazy("last start"))
    def booted(self, row: Any) -> str:
        return wording.ago(row.booted_at, row.now)

    @admin.display(description=gettext_lazy("retired"))
    def retired(self, row: Any) -> str:
        return wording.ago(row.retired_at, row.now)

    @admin.display(description=gettext_lazy("gone"))
    def gone(self, row: Any) -> str:
        return wording.ago(row.gone_at, row.now)

    @admin.display(description=gettext_lazy("last error"))
    def what_was_wrong(self, row: ServerlessMachine) -> SafeString | str:
        return wording.block(row.error) if row.error else wording.NOTHING
