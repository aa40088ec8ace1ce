"""Dispatchers: who is alive, and who leads."""

from typing import Any

from django.contrib import admin
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from machinequeue.admin import wording
from machinequeue.admin.readonly import ReadOnlyAdmin
from machinequeue.models import Dispatcher
from machinequeue.records.runs import DISPATCHER_SILENT


@admin.register(Dispatcher)
class DispatcherAdmin(ReadOnlyAdmin):
    list_display = ("dispatcher_name", "alive", "leads", "seen", "started", "up")
    ordering = ("-seen_at",)
    change_form_template = "machinequeue/admin/page.html"
    fieldsets = ((None, {"fields": (("dispatcher_name", "alive", "leads"), ("seen", "started", "up"))}),)
    readonly_fields = ("dispatcher_name", "alive", "leads", "seen", "started", "up")

    @admin.display(description=gettext_lazy("name"))
    def dispatcher_name(self, dispatcher: Dispatcher) -> str:
        return dispatcher.name

    @admin.display(description=gettext_lazy("status"))
    def alive(self, dispatcher: Any) -> SafeString:
        if dispatcher.now - dispatcher.seen_at > DISPATCHER_SILENT:
            return wording.badge(_("Silent"), "bad")
        return wording.badge(_("Alive"), "good")

    @admin.display(description=gettext_lazy("leads"))
    def leads(self, dispatcher: Any) -> SafeString | str:
        if dispatcher.leads_until and dispatcher.leads_until > dispatcher.now:
            return wording.badge(_("Leads"), "active")
        return wording.NOTHING

    @admin.display(description=gettext_lazy("seen"))
    def seen(self, dispatcher: Any) -> str:
        return wording.ago(dispatcher.seen_at, dispatcher.now)

    @admin.display(description=gettext_lazy("started"))
    def started(self, dispatcher: Dispatcher) -> str:
        return wording.when(dispatcher.started_at)

    @admin.display(description=gettext_lazy("up for"))
    def up(self, dispatcher: Any) -> str:
        return wording.between(dispatcher.started_at, dispatcher.now)
