"""What the shop sells, who bought what, and the reports over it."""

import secrets
from decimal import Decimal

from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import DecimalField, ExpressionWrapper, F, Q, Sum
from django.db.models.expressions import Combinable
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


def new_token() -> str:
    """What makes the address of a purchase impossible to guess."""
    return secrets.token_urlsafe(16)


class Product(models.Model):
    class Category(models.TextChoices):
        LANDSCAPES = "landscapes", _("Landscapes")
        BOTANICALS = "botanicals", _("Botanicals")
        GEOMETRY = "geometry", _("Geometry")
        NIGHT_SKY = "night-sky", _("Night sky")

    sku = models.SlugField(_("article number"), max_length=20, unique=True)
    name = models.CharField(_("name"), max_length=100)
    category = models.CharField(_("category"), max_length=20, choices=Category)
    description = models.CharField(_("description"), max_length=300)
    price = models.DecimalField(_("price"), max_digits=8, decimal_places=2, validators=[MinValueValidator(Decimal(0))])
    picture = models.CharField(_("picture"), max_length=200, blank=True, help_text=_("name in the storage"))
    thumbnail = models.CharField(_("thumbnail"), max_length=200, blank=True, help_text=_("name in the storage"))

    class Meta:
        verbose_name = _("product")
        verbose_name_plural = _("products")
        ordering = ["sku"]
        constraints = [
            models.CheckConstraint(condition=Q(price__gte=0), name="store_product_price_not_negative"),
        ]

    def __str__(self) -> str:
        return self.name


class Purchase(models.Model):
    number = models.PositiveBigIntegerField(_("number"), unique=True)
    token = models.CharField(max_length=40, unique=True, default=new_token, editable=False)
    customer_name = models.CharField(_("name"), max_length=80)
    customer_email = models.EmailField(_("email"))
    customer_city = models.CharField(_("city"), max_length=60)
    placed_at = models.DateTimeField(_("placed at"), default=timezone.now, db_index=True)
    receipt_run = models.CharField(_("run of the receipt"), max_length=64, blank=True, editable=False)
    receipt_file = models.CharField(_("receipt"), max_length=200, blank=True, help_text=_("name in the storage"))

    class Meta:
        verbose_name = _("purchase")
        verbose_name_plural = _("purchases")
        ordering = ["-number"]

    def __str__(self) -> str:
        return self.label

    def get_absolute_url(self) -> str:
        return reverse("store:purchase", args=[self.token])

    @property
    def label(self) -> str:
        """The number as customers see it: P-000042."""
        return f"P-{self.number:06d}"

    @property
    def total(self) -> Decimal:
        """What was paid, in euros."""
        return sum((item.line_total for item in self.items.all()), Decimal("0.00"))


class PurchaseItemQuerySet(models.QuerySet["PurchaseItem"]):
    def revenue(self) -> Decimal:
        """What all these items brought in, in euros."""
        total: Decimal | None = self.aggregate(total=Sum(line_total()))["total"]
        return total or Decimal("0.00")


class PurchaseItem(models.Model):
    purchase = models.ForeignKey(Purchase, models.CASCADE, related_name="items", verbose_name=_("purchase"))
    product = models.ForeignKey(Product, models.PROTECT, related_name="sold", verbose_name=_("product"))
    quantity = models.PositiveSmallIntegerField(_("quantity"), validators=[MinValueValidator(1)])
    unit_price = models.DecimalField(_("unit price"), max_digits=8, decimal_places=2, help_text=_("on that day"))

    objects = PurchaseItemQuerySet.as_manager()

    class Meta:
        verbose_name = _("purchase item")
        verbose_name_plural = _("purchase items")
        constraints = [
            models.CheckConstraint(condition=Q(quantity__gte=1), name="store_item_quantity_at_least_one"),
            models.CheckConstraint(condition=Q(unit_price__gte=0), name="store_item_price_not_negative"),
            models.UniqueConstraint(fields=["purchase", "product"], name="store_item_once_per_purchase"),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} × {self.product_id}"

    @property
    def line_total(self) -> Decimal:
        return self.unit_price * self.quantity


class SalesReport(models.Model):
    requested_at = models.DateTimeField(_("requested at"), default=timezone.now)
    run = models.CharField(_("run"), max_length=64, blank=True, editable=False)
    file = models.CharField(_("file"), max_length=200, blank=True, help_text=_("name in the storage"))

    class Meta:
        verbose_name = _("sales report")
        verbose_name_plural = _("sales reports")
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"S-{self.pk:04d}" if self.pk else "S-new"


def line_total(of: str = "") -> Combinable:
    """Quantity times unit price, in euros, for a query over purchase items, or over what has them (of="items__")."""
    return ExpressionWrapper(
        F(f"{of}quantity") * F(f"{of}unit_price"), output_field=DecimalField(max_digits=14, decimal_places=2)
    )
