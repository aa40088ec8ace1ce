"""The shop is filled with the same purchases every time."""

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction

from demo_site.store.models import Product, Purchase, PurchaseItem
from demo_site.store.seeding import seed_purchases

pytestmark = pytest.mark.django_db


def _shop() -> list[tuple[object, ...]]:
    rows = PurchaseItem.objects.order_by("purchase__number", "product__sku")
    return list(
        rows.values_list(
            "purchase__number", "purchase__customer_email", "purchase__placed_at", "product__sku", "quantity"
        )
    )


def test_the_same_shop_every_time_whatever_its_size() -> None:
    seed_purchases(30)
    at_once = _shop()
    Purchase.objects.all().delete()
    for count in (1, 7, 30):
        seed_purchases(count)
    assert _shop() == at_once
    assert Purchase.objects.count() == 30


def test_what_is_there_stays() -> None:
    assert seed_purchases(5) == 5
    Purchase.objects.filter(number=3).update(customer_name="Somebody Else")
    assert seed_purchases(8) == 3
    assert Purchase.objects.get(number=3).customer_name == "Somebody Else"


def test_purchases_are_believable() -> None:
    seed_purchases(400)
    assert Product.objects.count() == 24
    assert not Purchase.objects.filter(items=None).exists()
    assert Purchase.objects.values("placed_at__year", "placed_at__month").distinct().count() == 24
    assert Purchase.objects.values("customer_name").distinct().count() > 200
    busy, quiet = (Purchase.objects.filter(placed_at__month=month).count() for month in (12, 8))
    assert busy > 2 * quiet


def test_the_command_refuses_what_is_no_number() -> None:
    with pytest.raises(CommandError, match="'-3' is not a number of purchases"):
        call_command("seed_store", "--purchases=-3")


@pytest.mark.parametrize("wrong", [{"quantity": 0}, {"unit_price": -1}])
def test_the_database_refuses_impossible_items(wrong: dict[str, int]) -> None:
    seed_purchases(1)
    with pytest.raises(IntegrityError), transaction.atomic():
        PurchaseItem.objects.update(**wrong)
