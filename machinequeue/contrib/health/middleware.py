"""Answer /ht/live/ and /ht/ready/ before any other middleware can refuse the host, redirect, or ask the database.

A load balancer asks by the machine's address, without the site's name and without TLS. To be the first of MIDDLEWARE.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch, reverse

from machinequeue.contrib.health import probes

Probe = Callable[[HttpRequest], HttpResponse]


class HealthCheckMiddleware:
    """Only these two addresses, and only GET and HEAD; everything else passes."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        if inspect.iscoroutinefunction(get_response):
            markcoroutinefunction(self)
            self._answer: Callable[[HttpRequest], Any] = self._answer_async
        else:
            self._answer = self._answer_sync

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        answer: HttpResponseBase | Awaitable[HttpResponseBase] = self._answer(request)
        return answer

    def _answer_sync(self, request: HttpRequest) -> HttpResponseBase:
        probe = _probe(request)
        response: HttpResponseBase = probe(request) if probe is not None else self._get_response(request)
        return response

    async def _answer_async(self, request: HttpRequest) -> HttpResponseBase:
        probe = _probe(request)
        if probe is probes.live:
            return probe(request)
        if probe is not None:
            return await sync_to_async(probe, thread_sensitive=False)(request)
        response: HttpResponseBase = await self._get_response(request)
        return response


def _probe(request: HttpRequest) -> Probe | None:
    if request.method not in ("GET", "HEAD") or not request.path.endswith(("/live/", "/ready/")):
        return None
    for name, probe in (("live", probes.live), ("ready", probes.ready)):
        if request.path == _address(name):
            return probe
    return None


def _address(name: str) -> str:
    try:
        return reverse(f"machinequeue_health:{name}")
    except NoReverseMatch:
        return f"/ht/{name}/"
