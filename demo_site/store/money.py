"""Money as people read it."""

from decimal import Decimal

VAT = Decimal("0.20")
"""The share of value added tax; prices include it."""


def euros(amount: Decimal) -> str:
    """€1,234.50: the same in every language, because receipts are compared by their text."""
    return f"€{amount:,.2f}"


def vat_included(total: Decimal) -> Decimal:
    """The tax within a price, in euros, rounded to the cent."""
    return (total - total / (1 + VAT)).quantize(Decimal("0.01"))
