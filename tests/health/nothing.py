"""A site with the middleware alone."""

from typing import Any

urlpatterns: list[Any] = []
