"""The shop for the people who run it."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from demo_site.store.models import Product, Purchase, PurchaseItem, SalesReport
from machinequeue import enqueue_many


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ("sku", "name", "category", "price", "thumbnail")
    list_filter = ("category",)
    search_fields = ("sku", "name")
    actions = ("make_pictures",)

    @admin.action(description=_("Make the pictures of the selected products"))
    def make_pictures(self, request: HttpRequest, queryset: QuerySet[Product]) -> None:
        # Every command loads the admin; only this action needs the tasks, and what they draw with.
        from demo_site.store.tasks import make_pictures

        made = enqueue_many(make_pictures, [((pk,), {}) for pk in queryset.values_list("pk", flat=True)])
        text = ngettext("%d picture is being made.", "%d pictures are being made.", len(made)) % len(made)
        self.message_user(request, text, messages.SUCCESS)


class ItemInline(admin.TabularInline):
    model = PurchaseItem
    extra = 0
    autocomplete_fields = ("product",)


@admin.register(Purchase)
class PurchaseAdmin(admin.ModelAdmin):
    list_display = ("label", "customer_name", "customer_city", "placed_at", "receipt_file")
    date_hierarchy = "placed_at"
    search_fields = ("number", "customer_name", "customer_email")
    readonly_fields = ("receipt_run", "receipt_file")
    inlines = (ItemInline,)


@admin.register(SalesReport)
class SalesReportAdmin(admin.ModelAdmin):
    list_display = ("__str__", "requested_at", "run", "file")
    readonly_fields = ("requested_at", "run", "file")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False
