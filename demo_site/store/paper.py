"""What every sheet of the shop has in common: fonts, colours, the letterhead and the foot."""

from collections.abc import Callable
from itertools import groupby
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph

SHOP = "Far Ridge Prints"
ADDRESS = "Far Ridge Prints · 7 Quayside · Porto · hello@example.com"
INK, MUTED, LINE, ACCENT, WASH = (HexColor(code) for code in ("#22303a", "#6b7780", "#d9dfe2", "#b5533c", "#f6f3ee"))
MARGIN = 22 * mm
WIDTH = A4[0] - 2 * MARGIN - 12
"""Of what stands on a sheet, in points: a frame keeps 6 on each side."""

TEXT = ParagraphStyle("text", fontName="Helvetica", fontSize=9.5, leading=14, textColor=INK)
SMALL = ParagraphStyle("small", TEXT, fontSize=8, leading=11, textColor=MUTED)
STRONG = ParagraphStyle("strong", TEXT, fontName="Helvetica-Bold")
TITLE = ParagraphStyle("title", STRONG, fontSize=22, leading=28)
HEADING = ParagraphStyle("heading", STRONG, fontSize=12, leading=18, spaceBefore=8)
SMALL_RIGHT = ParagraphStyle("small right", SMALL, alignment=TA_RIGHT)
RIGHT = ParagraphStyle("right", TEXT, alignment=TA_RIGHT)
RIGHT_STRONG = ParagraphStyle("right strong", STRONG, alignment=TA_RIGHT)

WIDE_FONT = "STSong-Light"
"""For text that Helvetica cannot show; PDF readers bring this font themselves."""


def words(text: str, style: ParagraphStyle = TEXT) -> Paragraph:
    """Text that somebody may have typed: never read as markup, and each letter in a font that has it."""
    runs = ((wide, escape("".join(letters))) for wide, letters in groupby(text, _is_wide))
    return Paragraph("".join(f'<font name="{_wide_font()}">{run}</font>' if wide else run for wide, run in runs), style)


def _is_wide(letter: str) -> bool:
    try:
        letter.encode("cp1252")
    except UnicodeEncodeError:
        return True
    return False


def _wide_font() -> str:
    if WIDE_FONT not in pdfmetrics.getRegisteredFontNames():
        pdfmetrics.registerFont(UnicodeCIDFont(WIDE_FONT))
    return WIDE_FONT


def letterhead(kind: str, foot: str) -> Callable[[Canvas, Any], None]:
    """Draws the head and the foot of a page, for `onFirstPage` and `onLaterPages`."""

    def draw(canvas: Canvas, document: Any) -> None:
        width, height = A4
        canvas.saveState()
        canvas.setFillColor(ACCENT)
        canvas.rect(0, height - 6 * mm, width, 6 * mm, stroke=0, fill=1)
        _ridge(canvas, MARGIN, height - 23 * mm)
        canvas.setFillColor(INK)
        canvas.setFont("Helvetica-Bold", 13)
        canvas.drawString(MARGIN + 14 * mm, height - 21 * mm, SHOP)
        canvas.setFillColor(MUTED)
        canvas.setFont("Helvetica", 9)
        canvas.drawRightString(width - MARGIN, height - 21 * mm, kind)
        canvas.setStrokeColor(LINE)
        canvas.line(MARGIN, 18 * mm, width - MARGIN, 18 * mm)
        canvas.setFont("Helvetica", 7.5)
        canvas.drawString(MARGIN, 13 * mm, foot)
        canvas.drawRightString(width - MARGIN, 13 * mm, f"page {document.page}")
        canvas.restoreState()

    return draw


def _ridge(canvas: Canvas, x: float, y: float) -> None:
    """The shop's mark: two hills."""
    for offset, colour in ((4 * mm, LINE), (0, ACCENT)):
        hill = canvas.beginPath()
        hill.moveTo(x + offset, y)
        hill.lineTo(x + offset + 4 * mm, y + 6 * mm)
        hill.lineTo(x + offset + 8 * mm, y)
        hill.close()
        canvas.setFillColor(colour)
        canvas.drawPath(hill, stroke=0, fill=1)
