"""When the Machines API last answered: written by who calls it, read by health."""

from datetime import timedelta

from django.db.models import F, Q
from django.db.models.functions import Now

from machinequeue.models import ApiAnswer
from machinequeue.records import sql

OFTEN = timedelta(seconds=10)
"""An answer that comes so soon after another is not written down."""
ERROR_LENGTH = 500


def answered(app: str) -> None:
    """It answered just now."""
    rows = ApiAnswer.objects.using(sql.alias())
    due = Q(answered_at=None) | Q(answered_at__lt=Now() - OFTEN) | Q(failed_at__gte=F("answered_at"))
    if rows.filter(due, app=app).update(answered_at=Now(), error=""):
        return
    if not rows.filter(app=app).exists():
        rows.bulk_create([ApiAnswer(app=app, answered_at=Now())], ignore_conflicts=True)


def failed(app: str, error: str) -> None:
    """It did not answer just now, or refused; `error` says what happened and holds no secret."""
    rows = ApiAnswer.objects.using(sql.alias())
    if not rows.filter(app=app).update(failed_at=Now(), error=error[:ERROR_LENGTH]):
        rows.bulk_create([ApiAnswer(app=app, failed_at=Now(), error=error[:ERROR_LENGTH])], ignore_conflicts=True)
