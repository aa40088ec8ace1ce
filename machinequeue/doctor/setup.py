"""What can be read without asking anybody: settings, surroundings, packages, times."""

import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

import django
from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import ERROR, run_checks

from machinequeue import conf
from machinequeue.doctor.facts import Facts
from machinequeue.doctor.findings import Finding, failure, fine, warning
from machinequeue.errors import ConfigurationError
from machinequeue.machines.errors import Unauthorized
from machinequeue.machines.session import authorization, normal_base


def settings(facts: Facts) -> Iterator[Finding]:
    """Are MACHINEQUEUE and TASKS complete and free of contradictions?"""
    found = list(_checked())
    try:
        read = conf.need("app", "api_token", "image")
    except ConfigurationError as error:
        if not any(finding.status == "failure" for finding in found):
            found.append(
                failure(
                    _first_sentence(str(error)),
                    "On Fly the app and the image are there by themselves, and the token is a secret: fly tokens "
                    "create "
                    "deploy, then fly secrets set FLY_API_TOKEN=... For development set DEBUG and run manage.py "
                    "mq_dev.",
                )
            )
    else:
        found += _usable(read)
    if not found:
        queues = sum(1 for _ in facts.policies())
        found.append(fine(f"App {read.app} at {read.api_url}, {queues} queue{'s' * (queues != 1)}."))
    yield from found


def _checked() -> Iterator[Finding]:
    for message in run_checks(tags=["machinequeue"]):
        said = failure if message.level >= ERROR else warning
        yield said(f"{message.msg} ({message.id})", str(message.hint or "See docs/reference/settings.md."))


def _usable(read: conf.Settings) -> Iterator[Finding]:
    try:
        authorization(read.api_token)
    except Unauthorized as error:
        yield failure(f"FLY_API_TOKEN: {error.message}.", "Set the secret again, in quotes, exactly as it was printed.")
    try:
        normal_base(read.api_url)
    except ValueError as error:
        yield failure(f"FLY_API_HOSTNAME: {error}", "Unset it, unless the Machines API is elsewhere.")


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."


def environment(facts: Facts) -> Iterator[Finding]:
    """Is what belongs to development off in production?"""
    read, debug = facts.settings(), django_settings.DEBUG
    if facts.on_fly() and debug:
        yield failure(
            "DEBUG is on in a machine on Fly: error pages show settings and code to everybody.",
            "Set DEBUG = False in the settings that the app uses on Fly.",
        )
    if facts.on_fly() and facts.is_local():
        yield failure(
            f"The Machines API is set to {read.api_url}, an emulator, in a machine on Fly: no machine is ever "
            f"launched.",
            "Unset FLY_API_HOSTNAME (and MACHINEQUEUE['API_URL']), and set the secret FLY_API_TOKEN.",
        )
    if not facts.on_fly() and debug and not facts.is_local():
        yield warning(
            "DEBUG is on, and the Machines API is Fly's: this computer launches machines that cost money, and with "
            "DEBUG Django keeps every query of a dispatcher in memory.",
            "Unset FLY_API_TOKEN to work with the emulator, or set DEBUG = False.",
        )
    if facts.is_local() and not facts.on_fly():
        yield fine(f"Development: machines are processes of this computer (emulator at {read.api_url}).")
    elif not debug:
        yield fine("Production: DEBUG is off, and the Machines API is Fly's.")


def packages(facts: Facts) -> Iterator[Finding]:
    """Are the packages installed that the features in use need?"""
    missing = [(feature, module, extra) for feature, module, extra in _needed(facts) if find_spec(module) is None]
    for feature, module, extra in missing:
        yield failure(
            f"{feature}, but the package of the module {module} is not installed.",
            f'pip install "machinequeue[{extra}]", here and in the image of the app.',
        )
    if not missing:
        yield fine(f"Everything that is in use is installed (Django {django.get_version()}).")


def _needed(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """(what is in use, the module that it needs, the extra that brings it)."""
    if django.VERSION < (6, 0):
        yield "Django is older than 6.0", "django_tasks", "django52"
    if facts.settings().redis_url:
        yield "REDIS_URL is set", "redis", "redis"
    if any("postgresql" in str(each.get("ENGINE")) for each in django_settings.DATABASES.values()):
        yield "A database is PostgreSQL", "psycopg", "postgres"
    if facts.is_local():
        yield "The Machines API is a local one", "starlette", "emulator"
        yield "The Machines API is a local one", "uvicorn", "emulator"
    if apps.is_installed("machinequeue.contrib.backups"):
        yield "machinequeue.contrib.backups is installed", "dbbackup", "backups"
    if "s3" in str(getattr(django_settings, "STORAGES", {}).get("dbbackup", {}).get("BACKEND", "")).lower():
        yield "Backups go to S3", "storages", "backups"
        yield "Backups go to S3", "boto3", "backups"
    if apps.is_installed("machinequeue.contrib.health"):
        yield "machinequeue.contrib.health is installed", "health_check", "health"


def timeouts(facts: Facts) -> Iterator[Finding]:
    """Do leases, timeouts and the lives of machines leave room for each other?"""
    read, _ = conf.read_settings(getattr(django_settings, "MACHINEQUEUE", {}), os.environ, debug=django_settings.DEBUG)
    found = [*_lease(read)]
    for _, queue, policy in facts.policies():
        found += _life(queue, policy)
    yield from found
    if not found:
        beats = read.lease_seconds / read.heartbeat_seconds
        yield fine(
            f"A claim outlives {beats:.1f} heartbeats of {read.heartbeat_seconds:g} s; every run fits into a machine's "
            f"life with {conf.GRACE_SECONDS} s of grace."
        )


def _lease(read: conf.Settings) -> Iterable[Finding]:
    if read.lease_seconds < 3 * read.heartbeat_seconds:
        yield failure(
            f"A claim holds for {read.lease_seconds:g} s, and a heartbeat comes every {read.heartbeat_seconds:g} s: "
            f"one "
            "that is late costs a run its claim.",
            f"Set MACHINEQUEUE['LEASE_SECONDS'] to at least {3 * read.heartbeat_seconds:g}.",
        )


def _life(queue: str, policy: conf.Policy) -> Iterable[Finding]:
    needed = policy.timeout + conf.GRACE_SECONDS
    if needed > policy.machine_life:
        yield failure(
            f"Queue {queue}: runs may take {policy.timeout:g} s, and machines live {policy.machine_life:g} s.",
            f"Set machine_life of the queue to at least {needed:g}, or lower its timeout.",
        )
    elif policy.min_machines and policy.machine_life - needed < policy.machine_life / 4:
        yield warning(
            f"Queue {queue} keeps machines waiting that claim a run only in the first {policy.machine_life - needed:g} "
            f"s "
            f"of the {policy.machine_life:g} s that they live: what is left must cover the run's timeout.",
            f"Set machine_life of the queue to {4 * policy.timeout:g} or more, or lower its timeout.",
        )
