"""A believable shop of any size, the same every time: purchase 17 is purchase 17 however many are asked for."""

import random
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import batched

from django.db import transaction

from demo_site.store.catalogue import CITIES, FIRST_NAMES, LAST_NAMES, PRINTS
from demo_site.store.models import Product, Purchase, PurchaseItem

BATCH = 500
LATEST = datetime(2026, 10, 31, 20, 0, tzinfo=UTC)
BUSY_MONTHS = {11: 1.7, 12: 2.4, 5: 1.2, 2: 0.8, 8: 0.7}
POPULAR = ("LS-102", "NS-401", "GE-301", "BO-201")


def seed_products() -> list[Product]:
    """The catalogue's products, made where missing."""
    Product.objects.bulk_create(
        (
            Product(
                sku=item.sku,
                name=item.name,
                category=item.category,
                description=item.description,
                price=Decimal(item.price),
            )
            for item in PRINTS
        ),
        ignore_conflicts=True,
    )
    return list(Product.objects.filter(sku__in=[item.sku for item in PRINTS]).order_by("sku"))


def seed_purchases(count: int) -> int:
    """Purchases 1 to `count`, made where missing, with their items; returns how many were made."""
    products = seed_products()
    there = set(Purchase.objects.filter(number__lte=count).values_list("number", flat=True))
    missing = (number for number in range(1, count + 1) if number not in there)
    return sum(_insert(numbers, products) for numbers in batched(missing, BATCH))


@transaction.atomic
def _insert(numbers: tuple[int, ...], products: list[Product]) -> int:
    purchases = Purchase.objects.bulk_create([_purchase(number) for number in numbers])
    PurchaseItem.objects.bulk_create(item for purchase in purchases for item in _items(purchase, products))
    return len(purchases)


def _purchase(number: int) -> Purchase:
    rng = random.Random(f"purchase {number}")
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    return Purchase(
        number=number,
        customer_name=f"{first} {last}",
        customer_email=f"{_ascii(first)}.{_ascii(last)}{rng.randrange(100)}@example.com",
        customer_city=rng.choice(CITIES),
        placed_at=_moment(rng),
    )


def _moment(rng: random.Random) -> datetime:
    """Within the two years before LATEST, more often before the holidays and in the evening."""
    while True:
        day = LATEST - timedelta(days=rng.randrange(730))
        if rng.random() * max(BUSY_MONTHS.values()) <= BUSY_MONTHS.get(day.month, 1.0):
            hour = min(max(round(rng.gauss(18, 4)), 6), 23)
            return day.replace(hour=hour, minute=rng.randrange(60), second=rng.randrange(60))


def _items(purchase: Purchase, products: list[Product]) -> Iterator[PurchaseItem]:
    rng = random.Random(f"items of {purchase.number}")
    weights = [3 if product.sku in POPULAR else 1 for product in products]
    lines = rng.choices((1, 2, 3, 4, 5, 6), weights=(38, 27, 17, 10, 5, 3))[0]
    chosen = {product.pk: product for product in rng.choices(products, weights, k=lines)}
    for product in chosen.values():
        quantity = rng.choices((1, 2, 3, 6), weights=(78, 15, 5, 2))[0]
        yield PurchaseItem(purchase=purchase, product=product, quantity=quantity, unit_price=product.price)


def _ascii(name: str) -> str:
    plain = name.replace("ø", "o").replace("ß", "ss")
    return "".join(
        letter for letter in unicodedata.normalize("NFKD", plain) if letter.isascii() and letter.isalpha()
    ).lower()
