"""Decide for each request whether it is answered here or replayed by Fly's proxy.

|                     | on a web machine               | on a serverless machine        |
| ------------------- | ------------------------------ | ------------------------------ |
| a serverless view   | replayed to its machine        | answered                       |
| any other view      | answered                       | replayed elsewhere             |

A request that did not come through the proxy, was replayed already, is too large to be replayed, or whose machine is
not there, is answered where it is.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings as django_settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from machinequeue import conf
from machinequeue.serverless.check_in import check_in_soon
from machinequeue.serverless.fleet import Fleet
from machinequeue.serverless.views import Wanted, wanted
from machinequeue.telemetry import emit

LARGEST_BODY = 1_000_000
"""Bytes; Fly replays no request whose body has more."""
SIZE = "MACHINEQUEUE_SERVERLESS_SIZE"
ELSEWHERE = "elsewhere=true"

Answer = HttpResponseBase | Awaitable[HttpResponseBase]


@dataclass(frozen=True, slots=True)
class Here:
    """Answered here; `reason` says why a request for a serverless view is."""

    reason: str = ""


class ServerlessMiddleware:
    """See the module. Sync and async; it belongs near the top of MIDDLEWARE."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Answer]) -> None:
        self.get_response = get_response
        self.fleet = Fleet()
        self.own_size = os.environ.get(SIZE, "")
        """Size key of this machine; empty on a web machine."""
        self.process_view: Callable[..., Any] = self._process_view
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)
            self.process_view = self._aprocess_view
        if self.own_size:
            check_in_soon()

    def __call__(self, request: HttpRequest) -> Answer:
        return self.get_response(request)

    def _process_view(self, request: HttpRequest, view: Callable[..., Any], *_: Any) -> HttpResponse | None:
        decided = self._decide(request, view)
        if isinstance(decided, Wanted):
            decided = _order(*self.fleet.instance(decided))
        return _answer(request, decided)

    async def _aprocess_view(self, request: HttpRequest, view: Callable[..., Any], *_: Any) -> HttpResponse | None:
        decided = self._decide(request, view)
        if isinstance(decided, Wanted):
            decided = _order(*await self.fleet.ainstance(decided))
        return _answer(request, decided)

    def _decide(self, request: HttpRequest, view: Callable[..., Any]) -> Here | Wanted | str:
        """Where the request is answered: here, on a machine that is wanted, or as an order to the proxy says."""
        # Only Fly's proxy follows an order; it takes this header off what clients send.
        if "HTTP_FLY_CLIENT_IP" not in request.META or _is_in_place(request.path):
            return Here()
        match = request.resolver_match
        found = wanted(view, match.view_name if match is not None else "")
        if found is None:
            return self._other_view(request)
        if request.method not in found.methods or found.size_key == self.own_size:
            return Here()
        if reason := _kept(request):
            return Here(reason)
        return found if conf.settings().app else Here("no app is set")

    def _other_view(self, request: HttpRequest) -> Here | str:
        if not self.own_size or _kept(request):
            return Here()
        return ELSEWHERE


def _is_in_place(path: str) -> bool:
    static = [url for url in (django_settings.STATIC_URL,) if url and url.startswith("/") and url != "/"]
    return path.startswith((*conf.settings().serverless_in_place, *static))


def _kept(request: HttpRequest) -> str:
    """Why the proxy must not, or cannot, replay this request; empty when it may."""
    if "HTTP_FLY_REPLAY_FAILED" in request.META:
        return "its machine did not take it"
    if "HTTP_FLY_REPLAY_SRC" in request.META:
        return "it was replayed already"
    if "chunked" in request.META.get("HTTP_TRANSFER_ENCODING", "").lower():
        return "the length of its body is not known"
    length = request.META.get("CONTENT_LENGTH") or "0"
    return "its body is too large" if not length.isdigit() or int(length) > LARGEST_BODY else ""


def _order(fly_id: str, reason: str) -> Here | str:
    if fly_id and fly_id == os.environ.get("FLY_MACHINE_ID"):
        return Here()
    return f"instance={fly_id}" if fly_id else Here(reason)


def _answer(request: HttpRequest, decided: Here | str) -> HttpResponse | None:
    view = request.resolver_match.view_name if request.resolver_match is not None else ""
    if isinstance(decided, Here):
        if decided.reason:
            emit("serverless.served", view=view, reason=decided.reason)
        return None
    emit("serverless.replayed", view=view, to=decided)
    seconds = conf.settings().serverless_timeout
    order = f"{decided};timeout={max(1, round(seconds * 1000))}ms;fallback=force_self"
    return HttpResponse(headers={"fly-replay": order, "Cache-Control": "private, no-store"})
