"""The shop at the root, the admin beside it."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", include("demo_site.store.urls")),
    path("admin/", admin.site.urls),
    path("ht/", include("machinequeue.contrib.health.urls")),
    path("favicon.ico", RedirectView.as_view(url=static("store/favicon.svg"))),
]
