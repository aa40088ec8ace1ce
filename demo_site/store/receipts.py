"""A purchase's receipt: one purchase in, the bytes of an A4 PDF out."""

from decimal import Decimal
from io import BytesIO
from typing import Any

from reportlab.graphics.barcode.qr import QrCodeWidget
from reportlab.graphics.shapes import Drawing
from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, SimpleDocTemplate, Spacer, Table

from demo_site.store.models import Purchase, PurchaseItem
from demo_site.store.money import VAT, euros, vat_included
from demo_site.store.paper import (
    ADDRESS,
    INK,
    LINE,
    MARGIN,
    RIGHT,
    RIGHT_STRONG,
    SHOP,
    SMALL,
    SMALL_RIGHT,
    STRONG,
    TITLE,
    WASH,
    WIDTH,
    letterhead,
    words,
)


def receipt_pdf(purchase: Purchase, items: list[PurchaseItem]) -> bytes:
    """The receipt of a purchase with these items, whose `product` is loaded."""
    file = BytesIO()
    document = SimpleDocTemplate(
        file,
        pagesize=A4,
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=34 * mm,
        bottomMargin=26 * mm,
        title=f"Receipt {purchase.label}",
        author=SHOP,
        lang="en",
    )
    total = sum((item.line_total for item in items), Decimal("0.00"))
    story: list[Flowable] = [*_head(purchase), _lines(items), Spacer(0, 4 * mm), _sums(total), *_thanks(purchase)]
    draw = letterhead("Receipt", ADDRESS)
    document.build(story, onFirstPage=draw, onLaterPages=draw)
    return file.getvalue()


def _head(purchase: Purchase) -> list[Flowable]:
    facts: list[list[Any]] = [
        [words("Purchase", SMALL), words("Placed", SMALL), words("For", SMALL)],
        [
            words(purchase.label, STRONG),
            words(f"{purchase.placed_at:%d %B %Y, %H:%M} UTC"),
            [words(purchase.customer_name, STRONG), words(purchase.customer_email), words(purchase.customer_city)],
        ],
    ]
    table = Table(facts, colWidths=[WIDTH * 0.22, WIDTH * 0.36, WIDTH * 0.42])
    table.setStyle([("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0)])
    return [words("Thank you for your purchase", TITLE), Spacer(0, 4 * mm), table, Spacer(0, 8 * mm)]


def _lines(items: list[PurchaseItem]) -> Table:
    heads = (("Print", SMALL), ("Article", SMALL), ("Each", SMALL_RIGHT), ("", SMALL), ("Sum", SMALL_RIGHT))
    rows = [[words(head, style) for head, style in heads]]
    rows += [
        [
            words(item.product.name, STRONG),
            words(item.product.sku, SMALL),
            words(euros(item.unit_price), RIGHT),
            words(f"× {item.quantity}"),
            words(euros(item.line_total), RIGHT),
        ]
        for item in items
    ]
    table = Table(rows, colWidths=[WIDTH * share for share in (0.46, 0.14, 0.16, 0.08, 0.16)], repeatRows=1)
    table.setStyle(
        [
            ("BACKGROUND", (0, 0), (-1, 0), WASH),
            ("LINEBELOW", (0, 0), (-1, -1), 0.5, LINE),
            ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
            ("TOPPADDING", (0, 1), (-1, -1), 6),
            ("BOTTOMPADDING", (0, 1), (-1, -1), 6),
        ]
    )
    return table


def _sums(total: Decimal) -> Table:
    tax = vat_included(total)
    rows = [
        [words("Net", RIGHT), words(euros(total - tax), RIGHT)],
        [words(f"VAT {VAT:.0%}", RIGHT), words(euros(tax), RIGHT)],
        [words("Total", RIGHT_STRONG), words(euros(total), RIGHT_STRONG)],
    ]
    table = Table(rows, colWidths=[WIDTH * 0.22, WIDTH * 0.2], hAlign="RIGHT")
    table.setStyle([("LINEABOVE", (0, 2), (-1, 2), 1, INK), ("TOPPADDING", (0, 2), (-1, 2), 6)])
    return table


def _thanks(purchase: Purchase) -> list[Flowable]:
    side = 26 * mm
    code = QrCodeWidget(f"{SHOP} {purchase.label}", barLevel="M", barWidth=side, barHeight=side)
    drawing = Drawing(side, side)
    drawing.add(code)
    note = words(
        "Each print is made when you ask for it. Returns within 30 days; bring this receipt or show the code.", SMALL
    )
    table = Table([[drawing, note]], colWidths=[side + 4 * mm, WIDTH - side - 4 * mm])
    table.setStyle([("VALIGN", (0, 0), (-1, -1), "MIDDLE"), ("LEFTPADDING", (0, 0), (0, 0), 0)])
    return [Spacer(0, 12 * mm), table]
