"""The no-op of each peer."""

from procrastinate.contrib.django import app as procrastinate_app

from peers.celery import app as celery_app


@procrastinate_app.task
def noop_procrastinate(number: int) -> int:
    """Procrastinate keeps the status of a job, not what it returns."""
    return number


@celery_app.task
def noop_celery(number: int) -> int:
    """Celery stores what it returns."""
    return number
