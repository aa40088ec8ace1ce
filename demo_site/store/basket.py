"""What a visitor has chosen so far: {article number: quantity} in the session."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from django.http import HttpRequest

from demo_site.store.models import Product

KEY = "basket"
MOST = 20
"""Of one print, in one purchase."""


@dataclass(frozen=True)
class Line:
    product: Product
    quantity: int

    @property
    def total(self) -> Decimal:
        return self.product.price * self.quantity


def quantities(request: HttpRequest) -> Mapping[str, int]:
    """Article numbers and how many of each."""
    kept: Mapping[str, int] = request.session.get(KEY, {})
    return kept


def lines(request: HttpRequest) -> list[Line]:
    """What is in the basket and still sold."""
    chosen = quantities(request)
    return [Line(product, chosen[product.sku]) for product in Product.objects.filter(sku__in=chosen)]


def set_quantity(request: HttpRequest, product: Product, quantity: int) -> None:
    """Set how many of a product; 0 takes it out."""
    chosen = {sku: count for sku, count in quantities(request).items() if sku != product.sku}
    if quantity > 0:
        chosen[product.sku] = min(quantity, MOST)
    request.session[KEY] = chosen


def empty(request: HttpRequest) -> None:
    request.session.pop(KEY, None)
