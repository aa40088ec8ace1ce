"""Who may read the report: staff, and whoever sends HEALTH_TOKEN."""

from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

from machinequeue import conf

SCHEME = "bearer "


def may_read(request: HttpRequest) -> bool:
    """Whether the request carries the token, or the session of staff."""
    return _has_token(request) or _is_staff(request)


def _has_token(request: HttpRequest) -> bool:
    token = conf.settings().health_token
    header = request.headers.get("authorization", "")
    asked = _take_from_address(request)
    sent = header[len(SCHEME) :].strip() if header.lower().startswith(SCHEME) else asked
    return bool(token) and constant_time_compare(sent, token)


def _take_from_address(request: HttpRequest) -> str:
    """The token of `?token=`, which is taken out, so that no report of an error shows it."""
    if "token" not in request.GET:
        return ""
    kept = request.GET.copy()
    sent: str = kept.pop("token")[-1]
    request.GET = kept  # type: ignore[assignment]  # an immutable one to others
    request.META["QUERY_STRING"] = kept.urlencode()
    return sent


def _is_staff(request: HttpRequest) -> bool:
    try:
        user = getattr(request, "user", None)  # without django.contrib.auth there is none
        return bool(user is not None and user.is_active and user.is_staff)
    except (DatabaseError, InterfaceError):
        return False  # sessions are in the database that is away: the token is what opens then
