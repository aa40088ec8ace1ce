"""The workbench: a visitor's Python runs on a machine of its own, which has nothing of the shop."""

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from demo_site.store import basket
from demo_site.store.examples import EXAMPLES
from demo_site.store.forms import SnippetForm
from demo_site.store.live import State, run_state
from machinequeue import container_task

KEY = "snippets"
KEPT = 5
"""Runs that a session remembers; it sees no others."""

run_snippet = container_task(image="python:3.13-slim", memory_mb=256, timeout=10, queue_name="snippets")


@require_http_methods(["GET", "POST"])
@never_cache
def workbench(request: HttpRequest) -> HttpResponse:
    """The form; posted, one run, and no second one of the same visitor before it has finished."""
    example = EXAMPLES.get(request.GET.get("example", ""), EXAMPLES["primes"])
    form = SnippetForm(request.POST or None, initial={"code": example[1]})
    mine: list[str] = request.session.get(KEY, [])
    if request.method == "POST" and mine and not _state(mine[-1])["finished"]:
        messages.error(request, _("One at a time: this one has not finished yet."))
        return redirect("store:snippet", mine[-1])
    if request.method == "POST" and form.is_valid():
        result = run_snippet.enqueue(["python", "main.py"], files={"main.py": form.cleaned_data["code"]})
        request.session[KEY] = [*mine, str(result.id)][-KEPT:]
        return redirect("store:snippet", result.id)
    context = {"form": form, "examples": EXAMPLES, "basket": basket.lines(request)}
    return render(request, "store/workbench.html", context)


@require_GET
@never_cache
def snippet(request: HttpRequest, run: Any) -> HttpResponse:
    """What became of a visitor's own snippet."""
    state = _own_state(request, str(run))
    result = run_snippet.get_result(str(run)) if state["status"] != "UNKNOWN" else None
    context = {
        "run": run,
        "state": state,
        "code": result.kwargs["files"]["main.py"]["text"] if result is not None else "",
        "value": result.return_value if result is not None and state["status"] == "SUCCESSFUL" else None,
        "basket": basket.lines(request),
    }
    return render(request, "store/snippet.html", context)


@require_GET
@never_cache
def snippet_state(request: HttpRequest, run: Any) -> JsonResponse:
    return JsonResponse(_own_state(request, str(run)))


def _own_state(request: HttpRequest, run: str) -> State:
    if run not in request.session.get(KEY, []):
        raise Http404("This session has run no such snippet.")
    return _state(run)


def _state(run: str) -> State:
    state = run_state(run_snippet, run, "")
    labels = {"RUNNING": _("Running"), "SUCCESSFUL": _("It has ended"), "FAILED": _("It was stopped")}
    return {**state, "label": labels.get(state["status"], state["label"]), "download": ""}
