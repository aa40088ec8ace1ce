"""The sales report: every purchase of the shop as an A4 PDF, with what it adds up to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from io import BytesIO
from itertools import batched
from typing import Any

from django.db.models import Count, Sum
from django.db.models.functions import TruncMonth
from reportlab.graphics.charts.barcharts import VerticalBarChart
from reportlab.graphics.shapes import Drawing
from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, PageBreak, SimpleDocTemplate, Spacer, Table

from demo_site.store.models import Product, Purchase, PurchaseItem, line_total
from demo_site.store.money import euros
from demo_site.store.paper import (
    ACCENT,
    HEADING,
    LINE,
    MARGIN,
    MUTED,
    RIGHT,
    RIGHT_STRONG,
    SHOP,
    SMALL,
    SMALL_RIGHT,
    STRONG,
    TEXT,
    TITLE,
    WASH,
    WIDTH,
    letterhead,
    words,
)

LINES_PER_PAGE = 32
Step = Callable[[int, int, str], None]
"""Told how far the report is: done, of how many, doing what."""


@dataclass(frozen=True)
class Sales:
    """What the shop sold, in euros."""

    purchases: int
    prints: int
    revenue: Decimal
    months: list[tuple[datetime, Decimal]]
    categories: list[tuple[str, int, Decimal]]
    bestsellers: list[tuple[str, int, Decimal]]


def read_sales() -> Sales:
    """Adds up every purchase, in the database."""
    items = PurchaseItem.objects.order_by()
    months = items.annotate(month=TruncMonth("purchase__placed_at")).values("month").annotate(sum=Sum(line_total()))
    categories = items.values("product__category").annotate(prints=Sum("quantity"), sum=Sum(line_total()))
    products = items.values("product__name").annotate(prints=Sum("quantity"), sum=Sum(line_total()))
    names = dict(Product.Category.choices)
    return Sales(
        purchases=Purchase.objects.count(),
        prints=items.aggregate(prints=Sum("quantity"))["prints"] or 0,
        revenue=items.revenue(),
        months=[(row["month"], row["sum"]) for row in months.order_by("month")],
        categories=[
            (str(names[row["product__category"]]), row["prints"], row["sum"]) for row in categories.order_by("-sum")
        ],
        bestsellers=[
            (row["product__name"], row["prints"], row["sum"]) for row in products.order_by("-sum", "product__name")[:8]
        ],
    )


def report_pdf(sales: Sales, label: str, step: Step) -> bytes:
    """The report over these sales, with a list of every purchase, page by page."""
    file = BytesIO()
    document = SimpleDocTemplate(
        file,
        pagesize=A4,
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=34 * mm,
        bottomMargin=26 * mm,
        title=f"Sales report {label}",
        author=SHOP,
        lang="en",
    )
    story = [*_summary(sales, label), *_chart(sales), *_tables(sales), *_every_purchase(sales, step)]
    draw = letterhead(f"Sales report {label}", f"{SHOP} · for the people who run it")
    step(_pages(sales), _pages(sales) + 1, "setting the pages")
    document.build(story, onFirstPage=draw, onLaterPages=draw)
    return file.getvalue()


def _summary(sales: Sales, label: str) -> list[Flowable]:
    facts = [
        [words(text, SMALL) for text in ("Purchases", "Prints sold", "Revenue", "A purchase, on average")],
        [
            words(f"{sales.purchases:,}", TITLE),
            words(f"{sales.prints:,}", TITLE),
            words(euros(sales.revenue), TITLE),
            words(euros(sales.revenue / max(sales.purchases, 1)), TITLE),
        ],
    ]
    table = Table(facts, colWidths=[WIDTH * share for share in (0.2, 0.2, 0.34, 0.26)])
    table.setStyle([("BACKGROUND", (0, 0), (-1, -1), WASH), ("BOTTOMPADDING", (0, 1), (-1, 1), 10)])
    return [words(f"Sales report {label}", TITLE), Spacer(0, 4 * mm), table]


def _chart(sales: Sales) -> list[Flowable]:
    if not sales.months:
        return [words("Nothing was sold yet.", TEXT)]
    drawing = Drawing(WIDTH, 62 * mm)
    chart: Any = VerticalBarChart()
    chart.x, chart.y, chart.width, chart.height = 14 * mm, 12 * mm, WIDTH - 16 * mm, 46 * mm
    chart.data = [[float(revenue) for _, revenue in sales.months]]
    chart.categoryAxis.categoryNames = [f"{month:%b %y}" for month, _ in sales.months]
    chart.categoryAxis.labels.angle = 60
    chart.categoryAxis.labels.boxAnchor = "e"
    chart.categoryAxis.labels.dy = -4
    chart.valueAxis.valueMin = 0
    chart.valueAxis.labelTextFormat = "€%d"
    chart.valueAxis.gridStrokeColor = LINE
    chart.valueAxis.visibleGrid = True
    for axis in (chart.categoryAxis, chart.valueAxis):
        axis.labels.fontSize = 6.5
        axis.labels.fillColor = MUTED
        axis.strokeColor = LINE
    chart.bars[0].fillColor = ACCENT
    chart.bars[0].strokeColor = None
    drawing.add(chart)
    return [words("Revenue by month", HEADING), drawing]


def _tables(sales: Sales) -> list[Flowable]:
    return [
        words("By category", HEADING),
        _table(("Category", "Prints", "Revenue"), _counted(sales.categories)),
        words("What sells best", HEADING),
        _table(("Print", "Prints", "Revenue"), _counted(sales.bestsellers)),
    ]


def _counted(rows: list[tuple[str, int, Decimal]]) -> list[tuple[str, str, str]]:
    return [(name, f"{count:,}", euros(amount)) for name, count, amount in rows]


def _every_purchase(sales: Sales, step: Step) -> Iterator[Flowable]:
    purchases = Purchase.objects.order_by("number").annotate(lines=Count("items"), sum=Sum(line_total(of="items__")))
    pages = _pages(sales)
    for page, batch in enumerate(batched(purchases.iterator(chunk_size=LINES_PER_PAGE * 10), LINES_PER_PAGE), start=1):
        step(page - 1, pages + 1, f"purchases, page {page} of {pages}")
        yield PageBreak()
        rows = [(f"{p.label}  {p.customer_name}", f"{p.placed_at:%d %b %Y}", euros(p.sum or Decimal(0))) for p in batch]
        yield _table(("Purchase", "Placed", "Total"), rows)


def _pages(sales: Sales) -> int:
    return -(-sales.purchases // LINES_PER_PAGE)


def _table(head: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> Table:
    cells = [[words(text, style) for text, style in zip(head, (SMALL, SMALL_RIGHT, SMALL_RIGHT), strict=True)]]
    cells += [[words(name, STRONG), words(middle, RIGHT), words(amount, RIGHT_STRONG)] for name, middle, amount in rows]
    table = Table(cells, colWidths=[WIDTH * share for share in (0.6, 0.2, 0.2)], repeatRows=1)
    table.setStyle(
        [
            ("BACKGROUND", (0, 0), (-1, 0), WASH),
            ("LINEBELOW", (0, 0), (-1, -1), 0.4, LINE),
            ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
            ("TOPPADDING", (0, 0), (-1, -1), 2),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
        ]
    )
    return table
