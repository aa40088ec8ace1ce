"""How a finding becomes an answer: never kept, and not logged as an error of the site."""

from typing import Any

from django.http import JsonResponse
from django.utils.cache import add_never_cache_headers


class Finding(JsonResponse):
    """JSON as people read it too, with a line break at its end."""

    def __init__(self, data: Any, status: int) -> None:
        super().__init__(data, status=status, json_dumps_params={"indent": 2, "ensure_ascii": False})
        self.content += b"\n"
        self["Content-Length"] = str(len(self.content))
        add_never_cache_headers(self)
        unlogged(self)


def unlogged(response: Any) -> None:
    """Let Django not log its 503: it would mail ADMINS at every probe, and the mail would show the whole request."""
    response._has_been_logged = True
