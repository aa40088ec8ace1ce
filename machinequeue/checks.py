"""Turn wrong or contradictory settings into system-check messages.

Ids: E001 a MACHINEQUEUE setting, E002 a TASKS entry, E003 no time zones, E004 the token would reach machines,
E005 redis is not installed, E006 a schedule of the code that cannot be enqueued, E007 a serverless view, W001 SQLite
without IMMEDIATE, W002 SQLite without WAL, W003 no TASKS entry uses us, W004 more machines than the database has
connections for, W005 a module with tasks or schedules that cannot be imported, W006 serverless views without their
middleware.
"""

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as Caution
from django.db import DatabaseError, connections

from machinequeue import conf, schedules
from machinequeue.errors import ConfigurationError
from machinequeue.records import sql
from machinequeue.serverless import views

MIDDLEWARE = "machinequeue.serverless.ServerlessMiddleware"
SHARE_OF_CONNECTIONS = 0.8
"""The rest is for the site, its dispatchers and whoever looks after the server."""


@register("machinequeue")
def check_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """The MACHINEQUEUE dict, and the TASKS entries that use our backend."""
    return [*_process_settings(), *_queues(), *_time_zone(), *_redis()]


@register("machinequeue")
def check_schedules(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """What the code declares as schedules: the task, its arguments, the queue and the overrides, the times."""
    hint = "Correct its schedule() or its @machine_task(schedule=...); see docs/how-to/schedule-tasks.md."
    problems: list[CheckMessage] = [
        Caution(problem, hint="The schedules that it declares are not known.", id="machinequeue.W005")
        for problem in schedules.discover()
    ]
    if _wrong_settings() or any(conf.read_policies(params, "")[1] for params in _entries().values()):
        return problems  # E001 or E002 says so
    for name, sentence in schedules.wrong_declarations():
        problems.append(Error(f"Schedule {name!r}: {sentence}", hint=hint, id="machinequeue.E006"))
    return problems


@register(Tags.urls)
def check_serverless(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """The views that serverless machines answer, and what decides that they do."""
    if not getattr(settings, "ROOT_URLCONF", ""):
        return []
    try:
        problems = list(views.problems())
        marked = views.any_marked()
    except ConfigurationError:
        return []  # E001 says so
    found: list[CheckMessage] = [
        Error(problem, hint="See docs/how-to/serverless-views.md.", id="machinequeue.E007") for problem in problems
    ]
    if marked and MIDDLEWARE not in settings.MIDDLEWARE:
        found.append(
            Caution(
                f"Views are marked as serverless, but MIDDLEWARE has no {MIDDLEWARE!r}, which sends requests to them.",
                hint="Put it near the top of MIDDLEWARE.",
                id="machinequeue.W006",
            )
        )
    return found


@register("machinequeue")
def check_sqlite(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """What a SQLite file needs when several processes write to it."""
    connection = connections[sql.alias()]
    if connection.vendor != "sqlite":
        return []
    options = connection.settings_dict.get("OPTIONS", {})
    problems: list[CheckMessage] = []
    if options.get("transaction_mode") != "IMMEDIATE":
        problems.append(
            Caution(
                "SQLite begins transactions as DEFERRED: two writers can fail with 'database is locked'.",
                hint="Add 'transaction_mode': 'IMMEDIATE', 'timeout': 30 to its OPTIONS.",
                id="machinequeue.W001",
            )
        )
    if "wal" not in str(options.get("init_command", "")).lower():
        problems.append(
            Caution(
                "SQLite is not told to use write-ahead logging, so readers block writers.",
                hint="Add 'init_command': 'PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL' to its OPTIONS.",
                id="machinequeue.W002",
            )
        )
    return problems


@register(Tags.database)
def check_connections(app_configs: Any = None, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """How many machines PostgreSQL has room for. Asks the server."""
    connection = connections[sql.alias()]
    if connection.vendor != "postgresql" or _wrong_settings():
        return []  # E001 says so
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('max_connections')::int")
            (most,) = cursor.fetchone()
    except DatabaseError:
        return []  # a check is no place to find the server away
    machines = conf.most_machines(conf.settings())
    wanted = machines * conf.CONNECTIONS_PER_MACHINE
    if wanted <= most * SHARE_OF_CONNECTIONS:
        return []
    return [
        Caution(
            f"{machines} machines may hold {wanted} database connections; the server has {most}.",
            hint="Lower MACHINEQUEUE['MAX_MACHINES'], set MACHINEQUEUE['DATABASE_CONNECTIONS'], or use a pooler.",
            id="machinequeue.W004",
        )
    ]


def _wrong_settings() -> list[str]:
    return conf.read_settings(getattr(settings, "MACHINEQUEUE", {}), os.environ, debug=settings.DEBUG)[1]


def _process_settings() -> Iterator[CheckMessage]:
    for problem in _wrong_settings():
        yield Error(problem, hint="See docs/reference/settings.md.", id="machinequeue.E001")
    raw = getattr(settings, "MACHINEQUEUE", {})
    env = raw.get("ENV") if isinstance(raw, Mapping) else None
    for token in sorted(conf.TOKENS.intersection(env) if isinstance(env, Mapping) else ()):
        yield Error(
            f"MACHINEQUEUE['ENV'] would give {token} to every task machine, and with it all of its app.",
            hint="Remove it: only a dispatcher needs the token.",
            id="machinequeue.E004",
        )


def _entries() -> dict[str, Any]:
    return {alias: params for alias, params in getattr(settings, "TASKS", {}).items() if conf.is_ours(params)}


def _queues() -> Iterator[CheckMessage]:
    entries = _entries()
    if not entries:
        yield Caution(
            "machinequeue is installed, but no entry of TASKS uses it.",
            hint=f"TASKS = {{'default': {{'BACKEND': '{conf.BACKEND}'}}}}",
            id="machinequeue.W003",
        )
    for alias, params in entries.items():
        for problem in conf.read_policies(params, f"TASKS[{alias!r}]")[1]:
            yield Error(problem, hint="See docs/reference/settings.md.", id="machinequeue.E002")


def _time_zone() -> Iterator[CheckMessage]:
    if not settings.USE_TZ:
        yield Error(
            "machinequeue keeps times with their zone and needs USE_TZ = True.",
            hint="Set USE_TZ.",
            id="machinequeue.E003",
        )


def _redis() -> Iterator[CheckMessage]:
    read, _ = conf.read_settings(getattr(settings, "MACHINEQUEUE", {}), os.environ, debug=settings.DEBUG)
    if read.redis_url and find_spec("redis") is None:
        yield Error(
            "REDIS_URL is set, but the package redis is not installed.",
            hint="pip install machinequeue[redis], or unset REDIS_URL to carry wake-ups in a SQLite file.",
            id="machinequeue.E005",
        )
