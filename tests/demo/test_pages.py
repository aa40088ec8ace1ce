"""The shop's pages: what a visitor sees, and that a page never makes anything itself."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.storage import default_storage
from django.db import IntegrityError
from django.test import Client
from pypdf import PdfReader

from demo_site.store import ordering
from demo_site.store.models import Product, Purchase, SalesReport
from demo_site.store.seeding import seed_products, seed_purchases
from demo_site.store.tasks import make_pictures, make_receipt
from machinequeue.testing import run_tasks

pytestmark = pytest.mark.django_db
VISITOR = {"customer_name": "Ada Novak", "customer_email": "ada@example.com", "customer_city": "Graz"}


@pytest.fixture
def media(settings: Any, tmp_path: Any) -> None:
    settings.MEDIA_ROOT = tmp_path


def _place(client: Client) -> Purchase:
    seed_products()
    client.post("/basket/GE-301/", {"quantity": 2})
    client.post("/basket/BO-201/", {"quantity": 1})
    answer = client.post("/checkout/", VISITOR)
    purchase = Purchase.objects.get()
    assert answer.headers["location"] == purchase.get_absolute_url()
    return purchase


def test_the_shop_window(client: Client) -> None:
    assert "The shop is empty" in client.get("/").text
    seed_products()
    page = client.get("/").text
    assert page.count('<li class="card">') == 24
    assert page.count("Perseids") > 0
    assert client.get("/?category=geometry").text.count('<li class="card">') == 6
    assert client.get("/?category=nonsense").text.count('<li class="card">') == 24


def test_pages_load_nothing_from_elsewhere(client: Client) -> None:
    seed_products()
    for address in ("/", "/checkout/"):
        page = client.get(address).text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in page
        assert "https:" not in page
        assert 'rel="icon" href="data:image/svg+xml' in page


def test_a_purchase_and_its_receipt(client: Client, media: None) -> None:
    purchase = _place(client)
    address = purchase.get_absolute_url()
    assert purchase.total == 2 * 24 + 29.5
    state = client.get(f"{address}state.json").json()
    assert (state["status"], state["finished"], state["download"]) == ("READY", False, "")
    assert state["sentence"]
    assert client.get(f"{address}receipt.pdf").status_code == 404
    assert run_tasks() == 1
    state = client.get(f"{address}state.json").json()
    assert (state["status"], state["progress"], state["sentence"]) == ("SUCCESSFUL", 1, "")
    assert state["machine"]
    answer = client.get(state["download"])
    assert answer.headers["content-disposition"] == f'attachment; filename="{purchase.label}.pdf"'
    assert "Total €77.50" in PdfReader(BytesIO(answer.getvalue())).pages[0].extract_text().replace("\n", "").replace(
        "  ", " "
    )
    assert f'href="{state["download"]}"' in client.get(address).text


def test_a_purchase_that_cannot_be_kept_leaves_no_run(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_products()
    client.post("/basket/GE-301/", {"quantity": 1})

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(Purchase, "save", _save_once_then(fail))
    with pytest.raises(RuntimeError, match="disk is full"):
        client.post("/checkout/", VISITOR)
    assert not Purchase.objects.exists()
    assert run_tasks() == 0


def _save_once_then(fail: Any) -> Any:
    kept = Purchase.save
    calls: list[object] = []

    def save(self: Purchase, *args: Any, **kwargs: Any) -> None:
        calls.append(self)
        (kept if len(calls) == 1 else fail)(self, *args, **kwargs)

    return save


def test_a_number_that_others_took_is_replaced_by_the_next(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_purchases(3)
    numbers = iter([2, 3, 4])
    monkeypatch.setattr(ordering, "next_number", lambda: next(numbers))
    client.post("/basket/GE-301/", {"quantity": 1})
    client.post("/checkout/", VISITOR)
    assert Purchase.objects.latest("number").label == "P-000004"
    assert run_tasks() == 1


def test_numbers_that_stay_taken_are_an_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_purchases(1)
    monkeypatch.setattr(ordering, "next_number", lambda: 1)
    client.post("/basket/GE-301/", {"quantity": 1})
    with pytest.raises(IntegrityError):
        client.post("/checkout/", VISITOR)
    assert Purchase.objects.count() == 1


def test_the_basket(client: Client) -> None:
    seed_products()
    client.post("/basket/GE-301/", {"quantity": 99})
    assert "A quantity is a whole number from 0 to 20." in client.get("/checkout/").text
    client.post("/basket/GE-301/", {"quantity": 3})
    assert "€72.00" in client.get("/checkout/").text
    client.post("/basket/GE-301/", {"quantity": 0})
    assert "Nothing in it yet." in client.get("/checkout/").text
    assert client.post("/basket/NO-1/", {"quantity": 1}).status_code == 404


@pytest.mark.parametrize("wrong", [{"customer_email": "nobody"}, {"customer_name": ""}])
def test_a_form_that_is_wrong_is_shown_again(client: Client, wrong: dict[str, str]) -> None:
    seed_products()
    client.post("/basket/GE-301/", {"quantity": 1})
    assert 'class="errorlist"' in client.post("/checkout/", VISITOR | wrong).text
    assert not Purchase.objects.exists()


def test_nothing_can_be_bought_with_an_empty_basket(client: Client) -> None:
    assert "Your basket is empty." in client.post("/checkout/", VISITOR).text
    assert not Purchase.objects.exists()


def test_purchases_are_found_by_their_token_only(client: Client) -> None:
    purchase = _place(client)
    for guess in (purchase.label, str(purchase.number), str(purchase.pk)):
        assert client.get(f"/purchases/{guess}/").status_code == 404


def test_a_failed_receipt_says_why_and_can_be_made_again(
    client: Client, media: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    purchase = _place(client)
    with monkeypatch.context() as patched:
        patched.setattr("demo_site.store.tasks.receipt_pdf", lambda *_: 1 / 0)
        run_tasks()
    state = client.get(f"{purchase.get_absolute_url()}state.json").json()
    assert state["status"] == "FAILED"
    assert "ZeroDivisionError" in state["sentence"]
    client.post(f"{purchase.get_absolute_url()}receipt/")
    run_tasks()
    assert client.get(f"{purchase.get_absolute_url()}state.json").json()["status"] == "SUCCESSFUL"


def test_a_receipt_that_is_being_made_is_not_made_twice(client: Client) -> None:
    purchase = _place(client)
    client.post(f"{purchase.get_absolute_url()}receipt/")
    assert Purchase.objects.get().receipt_run == purchase.receipt_run


def test_a_seeded_purchase_has_no_receipt_yet(client: Client, media: None) -> None:
    seed_purchases(1)
    purchase = Purchase.objects.get()
    assert client.get(f"{purchase.get_absolute_url()}state.json").json()["status"] == "UNKNOWN"
    client.post(f"{purchase.get_absolute_url()}receipt/")
    assert run_tasks() == 1
    assert Purchase.objects.get().receipt_file == "receipts/P-000001.pdf"


def test_reports_are_for_the_staff(client: Client, media: None) -> None:
    seed_purchases(5)
    for address in ("/reports/", "/reports/1/state.json", "/reports/1.pdf"):
        assert client.get(address).headers["location"].startswith("/admin/login/")
    client.force_login(User.objects.create_user("keeper", is_staff=True))
    client.post("/reports/")
    report = SalesReport.objects.get()
    assert str(report) in client.get("/reports/").text
    run_tasks()
    state = client.get(f"/reports/{report.pk}/state.json").json()
    assert state["status"] == "SUCCESSFUL"
    assert client.get(state["download"]).getvalue().startswith(b"%PDF-")


def test_pictures_are_made_and_shown(client: Client, media: None) -> None:
    product = next(product for product in seed_products() if product.sku == "NS-401")
    assert client.get("/pictures/NS-401/thumbnail.jpg").status_code == 404
    make_pictures.enqueue(product.pk)
    run_tasks()
    answer = client.get("/pictures/NS-401/thumbnail.jpg")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.getvalue().startswith(b"\xff\xd8")
    assert client.get("/pictures/NS-401/secret.jpg").status_code == 404
    assert "/pictures/NS-401/thumbnail.jpg" in client.get("/").text


def test_the_admin_asks_for_pictures(admin_client: Client, media: None) -> None:
    seed_products()
    chosen = list(Product.objects.values_list("pk", flat=True)[:2])
    answer = admin_client.post(
        "/admin/store/product/", {"action": "make_pictures", "_selected_action": chosen}, follow=True
    )
    assert "2 pictures are being made." in answer.text
    assert run_tasks() == 2
    assert Product.objects.exclude(thumbnail="").count() == 2


def test_a_receipt_made_again_replaces_the_file(media: None) -> None:
    seed_purchases(1)
    purchase = Purchase.objects.get()
    for _ in range(2):
        make_receipt.enqueue(purchase.pk)
    assert run_tasks() == 2
    assert default_storage.listdir("receipts")[1] == ["P-000001.pdf"]


def test_pages_in_german(client: Client) -> None:
    purchase = _place(client)
    page = client.get(purchase.get_absolute_url(), headers={"accept-language": "de"}).text
    assert '<html lang="de">' in page
    assert "Wartet auf eine Maschine" in page
    assert "Ihr Beleg" in page


def test_a_landing_page_is_made_once_for_all_visitors(
    settings: Any, tmp_path: Path, django_assert_num_queries: Any
) -> None:
    kept = {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": str(tmp_path)}
    settings.CACHES = {**settings.CACHES, "pages": kept}
    seed_products()
    first = Client().get("/prints/GE-301/")
    assert "max-age=300" in first.headers["Cache-Control"]
    assert "Cookie" not in first.headers.get("Vary", "")
    assert not first.cookies
    with django_assert_num_queries(0):
        again = Client().get("/prints/GE-301/")
    assert again.content == first.content
    assert Product.objects.get(sku="GE-301").name in again.text
    assert Client().get("/prints/XX-1/").status_code == 404
