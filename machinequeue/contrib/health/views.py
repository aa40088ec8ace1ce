"""The report for operators, as JSON and as a page, and the metrics."""

import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render, resolve_url
from django.urls import NoReverseMatch
from django.utils.cache import add_never_cache_headers, patch_vary_headers
from django.utils.decorators import method_decorator
from django.views.generic import View

from machinequeue import metrics as room
from machinequeue.contrib.health import checks, door
from machinequeue.contrib.health.answering import Finding, unlogged
from machinequeue.contrib.health.report import Listed, look, made
from machinequeue.errors import ConfigurationError
from machinequeue.health import asking

logger = logging.getLogger("machinequeue.health")

METRICS_SECONDS = 8.0
PLAIN = "text/plain; charset=utf-8"
FORMATS = {"text/html": "html", "application/json": "json", "text/plain": "text"}
HOW = "Log in as staff, or send HEALTH_TOKEN: Authorization: Bearer <token>."


@method_decorator(transaction.non_atomic_requests, name="dispatch")
class HealthView(View):
    """What `checks` say: 200 "ok" or "degraded", 503 "failure". JSON, a page for who accepts HTML, or plain text.

    `?format=json`, `html` and `text` choose; 403 for who is neither staff nor sends the token.
    """

    http_method_names = ["get", "head", "options"]
    checks: Iterable[Listed] = checks.DEFAULT

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Never kept, and never named to another site: its address may hold the token."""
        response = super().dispatch(request, *args, **kwargs)
        add_never_cache_headers(response)
        patch_vary_headers(response, ["Accept", "Authorization", "Cookie"])
        response["Referrer-Policy"] = "no-referrer"
        return response

    def get(self, request: HttpRequest) -> HttpResponse:
        wanted = _format(request)
        if not door.may_read(request):
            return _refusal(request) if wanted == "html" else Finding({"status": "refused", "sentence": HOW}, 403)
        report = look(made(self.checks))
        if wanted == "json":
            return Finding(report.as_dict(), report.http_status)
        if wanted == "text":
            answer = HttpResponse(report.as_text(), content_type=PLAIN, status=report.http_status)
        else:
            answer = render(request, "machinequeue/health/report.html", {"report": report}, status=report.http_status)
        unlogged(answer)
        return answer


def _format(request: HttpRequest) -> str:
    """html, json or text: as `?format=` says, else the first of them that Accept names, else json."""
    asked = request.GET.get("format", "")
    if asked in FORMATS.values():
        return asked
    accept = request.headers.get("accept", "")
    named = sorted((accept.find(kind), name) for kind, name in FORMATS.items() if kind in accept)
    return named[0][1] if named else "json"


def _refusal(request: HttpRequest) -> HttpResponse:
    page = _login_page()
    login = f"{page}?{urlencode({'next': request.path})}" if page else ""
    return render(request, "machinequeue/health/refused.html", {"login": login}, status=403)


def _login_page() -> str:
    """Where staff logs in: the admin's page, else the site's; empty where there is none."""
    for name in ("admin:login", settings.LOGIN_URL):
        try:
            return resolve_url(name)
        except NoReverseMatch:
            continue
    return ""


def metrics(request: HttpRequest) -> HttpResponse:
    """For Prometheus, with the token or as staff. 200 also with the database away: that is a metric then."""
    if not door.may_read(request):
        return HttpResponse(f"{HOW}\n", status=403, content_type=PLAIN)
    heard = asking.ask("metrics", room.measure, METRICS_SECONDS)
    if isinstance(heard.error, DatabaseError | InterfaceError):
        logger.warning("Metrics: the rows could not be read: %s", heard.error)
    elif heard.error is not None:
        raise heard.error
    try:
        body, content_type = room.exposition(heard.answer, request.headers.get("accept", ""))
    except ConfigurationError as error:
        return HttpResponse(f"{error}\n", status=501, content_type=PLAIN)
    response = HttpResponse(body, content_type=content_type)
    add_never_cache_headers(response)
    return response
