from django.urls import path

from demo_site.store import snippets, views

app_name = "store"
urlpatterns = [
    path("", views.storefront, name="storefront"),
    path("prints/<slug:sku>/", views.landing, name="landing"),
    path("pictures/<slug:sku>/<slug:kind>.jpg", views.picture, name="picture"),
    path("basket/<slug:sku>/", views.change_basket, name="change-basket"),
    path("checkout/", views.checkout, name="checkout"),
    path("purchases/<str:token>/", views.purchase, name="purchase"),
    path("purchases/<str:token>/state.json", views.purchase_state, name="purchase-state"),
    path("purchases/<str:token>/receipt.pdf", views.receipt, name="receipt"),
    path("purchases/<str:token>/receipt-at-once.pdf", views.receipt_at_once, name="receipt-at-once"),
    path("purchases/<str:token>/receipt/", views.make_receipt_again, name="make-receipt"),
    path("workbench/", snippets.workbench, name="workbench"),
    path("workbench/<uuid:run>/", snippets.snippet, name="snippet"),
    path("workbench/<uuid:run>/state.json", snippets.snippet_state, name="snippet-state"),
    path("reports/", views.reports, name="reports"),
    path("reports/<int:pk>/state.json", views.report_state, name="report-state"),
    path("reports/<int:pk>.pdf", views.report, name="report"),
]
