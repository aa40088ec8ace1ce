"""The shop's pages. None of them makes anything itself: it writes rows, and a machine does the work."""

from django.contrib import messages
from django.contrib.admin.views.decorators import staff_member_required
from django.core.files.storage import default_storage
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import cache_control, cache_page, never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from demo_site.store import basket, ordering
from demo_site.store.forms import CheckoutForm, QuantityForm
from demo_site.store.live import State, run_state
from demo_site.store.models import Product, Purchase, SalesReport
from demo_site.store.receipts import receipt_pdf
from demo_site.store.tasks import make_receipt, sales_report
from machinequeue.serverless import serverless_view


@require_GET
def storefront(request: HttpRequest) -> HttpResponse:
    category = request.GET.get("category", "")
    products = Product.objects.all()
    if category in Product.Category.values:
        products = products.filter(category=category)
    context = {
        "products": products,
        "category": category,
        "categories": Product.Category.choices,
        "basket": basket.lines(request),
    }
    return render(request, "store/storefront.html", context)


@require_GET
@cache_page(300, cache="pages")
def landing(request: HttpRequest, sku: str) -> HttpResponse:
    """A print's own page, the same for every visitor: it reads no session, so each web machine can keep it."""
    return render(request, "store/landing.html", {"product": get_object_or_404(Product, sku=sku)})


@require_GET
@cache_control(public=True, max_age=3600)
def picture(request: HttpRequest, sku: str, kind: str) -> FileResponse:
    product = get_object_or_404(Product, sku=sku)
    return _file({"picture": product.picture, "thumbnail": product.thumbnail}.get(kind, ""))


@require_POST
def change_basket(request: HttpRequest, sku: str) -> HttpResponse:
    product = get_object_or_404(Product, sku=sku)
    form = QuantityForm(request.POST)
    if form.is_valid():
        basket.set_quantity(request, product, form.cleaned_data["quantity"])
        messages.success(request, _("Your basket was changed."))
    else:
        messages.error(request, _("A quantity is a whole number from 0 to 20."))
    return redirect("store:checkout")


@require_http_methods(["GET", "POST"])
def checkout(request: HttpRequest) -> HttpResponse:
    lines = basket.lines(request)
    form = CheckoutForm(request.POST or None)
    if request.method == "POST" and not lines:
        messages.error(request, _("Your basket is empty."))
    elif request.method == "POST" and form.is_valid():
        placed = ordering.place(form.save(commit=False), lines)
        basket.empty(request)
        return redirect(placed)
    context = {"form": form, "basket": lines, "total": sum(line.total for line in lines)}
    return render(request, "store/checkout.html", context)


@require_GET
@never_cache
def purchase(request: HttpRequest, token: str) -> HttpResponse:
    found = get_object_or_404(Purchase.objects.prefetch_related("items__product"), token=token)
    context = {"purchase": found, "state": _receipt_state(found), "basket": basket.lines(request)}
    return render(request, "store/purchase.html", context)


@require_GET
@never_cache
def purchase_state(request: HttpRequest, token: str) -> JsonResponse:
    return JsonResponse(_receipt_state(get_object_or_404(Purchase, token=token)))


@require_POST
def make_receipt_again(request: HttpRequest, token: str) -> HttpResponse:
    found = get_object_or_404(Purchase, token=token)
    if _receipt_state(found)["finished"]:
        ordering.have_receipt_made(found)
    return redirect(found)


@require_GET
@never_cache
def receipt(request: HttpRequest, token: str) -> FileResponse:
    found = get_object_or_404(Purchase, token=token)
    return _file(found.receipt_file, save_as=f"{found.label}.pdf")


@serverless_view(memory_mb=512)
@require_GET
@never_cache
def receipt_at_once(request: HttpRequest, token: str) -> HttpResponse:
    """The receipt, made while the visitor waits: by a serverless machine where there is one."""
    found = get_object_or_404(Purchase, token=token)
    content = receipt_pdf(found, list(found.items.select_related("product").order_by("product__sku")))
    return HttpResponse(content, content_type="application/pdf")


@staff_member_required
@require_http_methods(["GET", "POST"])
@never_cache
def reports(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        ordering.have_report_made()
        return redirect("store:reports")
    shown = [{"report": found, "state": _report_state(found)} for found in SalesReport.objects.all()[:20]]
    return render(request, "store/reports.html", {"reports": shown, "basket": basket.lines(request)})


@staff_member_required
@require_GET
@never_cache
def report_state(request: HttpRequest, pk: int) -> JsonResponse:
    return JsonResponse(_report_state(get_object_or_404(SalesReport, pk=pk)))


@staff_member_required
@require_GET
@never_cache
def report(request: HttpRequest, pk: int) -> FileResponse:
    found = get_object_or_404(SalesReport, pk=pk)
    return _file(found.file, save_as=f"sales-report-{found}.pdf")


def _receipt_state(found: Purchase) -> State:
    return run_state(make_receipt, found.receipt_run, reverse("store:receipt", args=[found.token]))


def _report_state(found: SalesReport) -> State:
    return run_state(sales_report, found.run, reverse("store:report", args=[found.pk]))


def _file(name: str, save_as: str = "") -> FileResponse:
    """A made file; 404 while there is none."""
    try:
        content = default_storage.open(name) if name else None
    except FileNotFoundError:
        content = None
    if content is None:
        raise Http404("This file has not been made.")
    return FileResponse(content, as_attachment=bool(save_as), filename=save_as or name.rpartition("/")[2])
