"""Pages that say who answered."""

import hashlib
import os

from django.contrib.sessions.models import Session
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View

from machinequeue.serverless import serverless_view


def told(request: HttpRequest) -> JsonResponse:
    """Which machine this is, of which image, and what the proxy said of the request."""
    names = {"src": "Fly-Replay-Src", "failed": "Fly-Replay-Failed"}
    number = request.GET.get("number", "")
    if number:
        _note(number)
    return JsonResponse(
        {
            "machine": os.environ.get("FLY_MACHINE_ID", ""),
            "image": os.environ.get("FLY_IMAGE_REF", ""),
            "serverless": bool(os.environ.get("MACHINEQUEUE_SERVERLESS")),
            "token": bool(os.environ.get("FLY_API_TOKEN")),
            "size": len(request.body),
            "sha256": hashlib.sha256(request.body).hexdigest(),
            "number": number,
            **{key: request.headers.get(name, "") for key, name in names.items()},
        }
    )


def _note(number: str) -> None:
    """A line of the journal that all machines share: this request was answered, here. Appending is atomic."""
    journal = os.open(os.environ["ANSWERED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(journal, f"{number}\n".encode())
    finally:
        os.close(journal)


def listed(request: HttpRequest) -> JsonResponse:
    return told(request)


@serverless_view(memory_mb=2048, cpus=2, regions=["iad"])
def marked(request: HttpRequest) -> JsonResponse:
    return told(request)


@method_decorator(serverless_view(methods=["GET", "POST"], memory_mb=512), name="dispatch")
class Posted(View):
    def get(self, request: HttpRequest) -> JsonResponse:
        return told(request)

    def post(self, request: HttpRequest) -> JsonResponse:
        return told(request)


async def awaited(request: HttpRequest) -> JsonResponse:
    return told(request)


def plain(request: HttpRequest) -> JsonResponse:
    return told(request)


def counted(request: HttpRequest) -> JsonResponse:
    """A page that needs the database."""
    return JsonResponse({"sessions": Session.objects.count()})


pages = [
    path("listed/", listed, name="listed"),
    path("marked/", marked, name="marked"),
    path("posted/", Posted.as_view(), name="posted"),
    path("awaited/", serverless_view(awaited), name="awaited"),
    path("counted/", counted, name="counted"),
    path("plain/", plain, name="plain"),
    path("ht/ready/", plain, name="ready"),
]
urlpatterns = [path("", include((pages, "site")))]
