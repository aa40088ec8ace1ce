"""The two answers for load balancers. They ask for nothing but what is named here, and tell nothing to strangers."""

from django.http import HttpRequest

from machinequeue.contrib.health.answering import Finding
from machinequeue.health import Status, asking, services

READY_SECONDS = 3.0


def live(request: HttpRequest) -> Finding:
    """This process answers requests. Nothing is asked."""
    return Finding({"status": "ok"}, 200)


def ready(request: HttpRequest) -> Finding:
    """The database answers: one query on a connection of its own, within three seconds.

    Never Redis, never Fly: a site whose runs wait still serves its pages.
    """
    heard = asking.ask("ready", services.database, READY_SECONDS)
    if heard.answer is not None and heard.answer.status == Status.OK:
        return Finding({"status": "ok"}, 200)
    if heard.answer is None and heard.error is None:
        return _not_ready(f"The database did not answer within {READY_SECONDS:g} s.")
    return _not_ready("The database does not answer.")


def _not_ready(sentence: str) -> Finding:
    return Finding({"status": "failure", "sentence": sentence}, 503)
