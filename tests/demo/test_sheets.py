"""What stands on receipts and reports."""

import re
from decimal import Decimal
from io import BytesIO

import pytest
from PIL import Image
from pypdf import PdfReader

from demo_site.store.artwork import draw_print
from demo_site.store.catalogue import PRINTS
from demo_site.store.models import Product, Purchase, PurchaseItem
from demo_site.store.money import euros, vat_included
from demo_site.store.receipts import receipt_pdf
from demo_site.store.reports import read_sales, report_pdf
from demo_site.store.seeding import seed_products, seed_purchases


def _read(content: bytes) -> tuple[int, str]:
    pages = PdfReader(BytesIO(content)).pages
    return len(pages), " ".join(" ".join(page.extract_text() for page in pages).split())


def _receipt(purchase: Purchase) -> tuple[int, str]:
    return _read(receipt_pdf(purchase, list(purchase.items.select_related("product"))))


@pytest.mark.django_db
def test_a_receipt_says_what_was_bought_and_what_it_cost() -> None:
    purchase = Purchase.objects.create(number=42, customer_name="Ada Müller", customer_city="Porto")
    harbour, fern = Product.objects.bulk_create(
        [
            Product(sku="GE-305", name="Tangram harbour", category="geometry", price="1028.00"),
            Product(sku="BO-201", name="Fern study", category="botanicals", price="29.50"),
        ]
    )
    purchase.items.create(product=harbour, quantity=1, unit_price=Decimal("1028.00"))
    purchase.items.create(product=fern, quantity=3, unit_price=Decimal("29.50"))
    pages, text = _receipt(purchase)
    assert pages == 1
    for words in (
        "P-000042",
        "Ada Müller",
        "Tangram harbour",
        "€29.50 × 3 €88.50",
        "VAT 20% €186.08",
        "Total €1,116.50",
    ):
        assert words in text


@pytest.mark.django_db
def test_what_a_customer_typed_is_never_markup() -> None:
    seed_purchases(1)
    Purchase.objects.update(customer_name='<font size="90">李小龍</font> & </para>')
    _, text = _receipt(Purchase.objects.get())
    assert '<font size="90">李小龍</font> & </para>' in text


@pytest.mark.django_db
def test_a_long_purchase_takes_more_pages() -> None:
    purchase = Purchase.objects.create(number=1, customer_name="A")
    Product.objects.bulk_create(
        Product(sku=f"X-{n}", name=f"Print {n}", category="geometry", price=1) for n in range(60)
    )
    PurchaseItem.objects.bulk_create(
        PurchaseItem(purchase=purchase, product=product, quantity=1, unit_price=1) for product in Product.objects.all()
    )
    pages, text = _receipt(purchase)
    assert pages == 3
    assert "Total €60.00" in text


@pytest.mark.django_db
def test_the_report_adds_every_purchase_up() -> None:
    seed_purchases(70)
    steps: list[tuple[int, int]] = []
    sales = read_sales()
    pages, text = _read(report_pdf(sales, "S-0009", lambda done, total, doing: steps.append((done, total))))
    totals = [purchase.total for purchase in Purchase.objects.all()]
    assert sales.revenue == sum(totals) == sum(amount for _, _, amount in sales.categories)
    assert sales.revenue == sum(amount for _, amount in sales.months)
    assert pages == 4  # the summary, and 70 purchases on three pages
    assert (
        f"S-0009 Purchases Prints sold Revenue A purchase, on average 70 {sales.prints} {euros(sales.revenue)}" in text
    )
    assert re.findall(r"P-0000\d\d", text) == [f"P-{number:06d}" for number in range(1, 71)]
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.django_db
def test_a_report_over_an_empty_shop() -> None:
    pages, text = _read(report_pdf(read_sales(), "S-0001", lambda *_: None))
    assert pages == 1
    assert "Nothing was sold yet." in text


def test_tax_is_within_the_price() -> None:
    assert vat_included(Decimal("120.00")) == Decimal("20.00")
    assert euros(Decimal("1234567.5")) == "€1,234,567.50"


@pytest.mark.parametrize("item", PRINTS[::7], ids=lambda item: item.sku)
def test_a_print_is_drawn_the_same_every_time(item: object) -> None:
    sku, category = item.sku, item.category  # type: ignore[attr-defined]
    first, second = (draw_print(sku, category, width=200) for _ in range(2))
    assert first.size == (200, 250)
    assert first.tobytes() == second.tobytes()
    assert len(first.getcolors(maxcolors=100_000) or []) > 3


@pytest.mark.django_db
def test_no_two_prints_are_alike() -> None:
    drawn = [draw_print(product.sku, product.category, width=120) for product in seed_products()]
    assert len({image.tobytes() for image in drawn}) == len(drawn) == 24
    assert all(isinstance(image, Image.Image) for image in drawn)
