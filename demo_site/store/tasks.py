"""What the shop has made on machines: receipts, the sales report and the pictures of its prints."""

from io import BytesIO
from typing import Any

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from PIL import Image

from demo_site.store.artwork import draw_print
from demo_site.store.models import Product, Purchase, SalesReport
from demo_site.store.receipts import receipt_pdf
from demo_site.store.reports import read_sales, report_pdf
from machinequeue import MachineTaskContext, machine_task

PICTURE_WIDTH = 1200
THUMBNAIL_WIDTH = 480


@machine_task(takes_context=True, timeout=120, max_attempts=3)
def make_receipt(context: MachineTaskContext, purchase_id: int) -> dict[str, Any]:
    """Make a purchase's receipt and keep it as receipts/P-000042.pdf. Made again, it replaces the one before."""
    context.progress(1, total=4, message="reading the purchase")
    purchase = Purchase.objects.get(pk=purchase_id)
    items = list(purchase.items.select_related("product").order_by("product__sku"))
    context.progress(2, total=4, message=f"setting {len(items)} lines")
    content = receipt_pdf(purchase, items)
    context.progress(3, total=4, message="keeping the file")
    name = _keep(f"receipts/{purchase.label}.pdf", content)
    Purchase.objects.filter(pk=purchase_id).update(receipt_file=name)
    context.progress(4, total=4, message="done")
    return {"file": name, "bytes": len(content)}


@machine_task(queue_name="reports", takes_context=True, timeout=900, max_attempts=2, memory_mb=4096, cpus=2)
def sales_report(context: MachineTaskContext, report_id: int) -> dict[str, Any]:
    """Make the report over every purchase, on a machine with memory for all of them."""
    report = SalesReport.objects.get(pk=report_id)
    sales = read_sales()
    content = report_pdf(sales, str(report), context.progress)
    name = _keep(f"reports/{report}.pdf", content)
    SalesReport.objects.filter(pk=report_id).update(file=name)
    return {"file": name, "bytes": len(content), "purchases": sales.purchases, "revenue": str(sales.revenue)}


@machine_task(queue_name="images", takes_context=True, timeout=120, max_attempts=3)
def make_pictures(context: MachineTaskContext, product_id: int) -> dict[str, Any]:
    """Draw a print and resize it: the picture of its page, and the thumbnail of the shop window."""
    product = Product.objects.get(pk=product_id)
    context.progress(0, total=2, message="drawing")
    # Drawn twice as large and made smaller, which smooths every edge.
    sheet = draw_print(product.sku, product.category, width=2 * PICTURE_WIDTH)
    made = {}
    for done, (kind, width) in enumerate((("picture", PICTURE_WIDTH), ("thumbnail", THUMBNAIL_WIDTH)), start=1):
        made[kind] = _keep(f"products/{product.sku}-{width}.jpg", _jpeg(sheet, width))
        context.progress(done, total=2, message=kind)
    Product.objects.filter(pk=product_id).update(**made)
    return made


def _jpeg(image: Image.Image, width: int) -> bytes:
    file = BytesIO()
    smaller = image.resize((width, image.height * width // image.width), Image.Resampling.LANCZOS)
    smaller.save(file, "JPEG", quality=86, optimize=True, progressive=True)
    return file.getvalue()


def _keep(name: str, content: bytes) -> str:
    return default_storage.save(name, ContentFile(content))
