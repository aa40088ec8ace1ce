"""Placing a purchase and asking for what is made of it: rows and their runs, in one transaction each."""

from django.db import IntegrityError, transaction
from django.db.models import Max

from demo_site.store.basket import Line
from demo_site.store.models import Purchase, PurchaseItem, SalesReport
from demo_site.store.tasks import make_receipt, sales_report

TRIES = 5


def place(purchase: Purchase, lines: list[Line]) -> Purchase:
    """Give the purchase the next number, keep it with its items and have its receipt made.

    All or nothing: without the purchase there is no run, and without the run no purchase. Raises IntegrityError when
    others took the next number five times in a row.
    """
    for left in reversed(range(TRIES)):
        purchase.number = next_number()
        try:
            with transaction.atomic():
                purchase.save(force_insert=True)
                PurchaseItem.objects.bulk_create(
                    PurchaseItem(
                        purchase=purchase, product=line.product, quantity=line.quantity, unit_price=line.product.price
                    )
                    for line in lines
                )
                have_receipt_made(purchase)
            return purchase
        except IntegrityError:
            purchase.pk = None
            if not left:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def next_number() -> int:
    """One more than the last; another purchase may take it first."""
    last: int | None = Purchase.objects.aggregate(last=Max("number"))["last"]
    return (last or 0) + 1


@transaction.atomic
def have_receipt_made(purchase: Purchase) -> None:
    """Enqueue the purchase's receipt and remember which run makes it."""
    purchase.receipt_run = make_receipt.enqueue(purchase.pk).id
    purchase.save(update_fields=["receipt_run"])


@transaction.atomic
def have_report_made() -> SalesReport:
    """Enqueue a sales report and remember which run makes it."""
    report = SalesReport.objects.create()
    report.run = sales_report.enqueue(report.pk).id
    report.save(update_fields=["run"])
    return report
