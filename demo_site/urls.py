"""The shop at the root, the admin beside it."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("demo_site.store.urls")),
    path("admin/", admin.site.urls),
]
