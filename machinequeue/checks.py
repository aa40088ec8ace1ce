"""Turn wrong or contradictory settings into system-check messages.

Ids: E001 a MACHINEQUEUE setting, E002 a TASKS entry, E003 no time zones, E004 the token would reach machines,
E005 redis is not installed, W001 SQLite without IMMEDIATE, W002 SQLite without WAL, W003 no TASKS entry uses us.
"""

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as Caution
from django.db import connections

from machinequeue import conf
from machinequeue.records import sql

BACKEND = "machinequeue.MachineBackend"
BACKENDS = (BACKEND, "machinequeue.backend.MachineBackend", "machinequeue.backend.engine.MachineBackend")


@register("machinequeue")
def check_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """The MACHINEQUEUE dict, and the TASKS entries that use our backend."""
    return [*_process_settings(), *_queues(), *_time_zone(), *_redis()]


@register(Tags.database)
def check_database(app_configs: Any = None, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
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


def _process_settings() -> Iterator[CheckMessage]:
    raw = getattr(settings, "MACHINEQUEUE", {})
    _, problems = conf.read_settings(raw, os.environ, debug=settings.DEBUG)
    for problem in problems:
        yield Error(problem, hint="See docs/reference/settings.md.", id="machinequeue.E001")
    env = raw.get("ENV") if isinstance(raw, Mapping) else None
    if isinstance(env, Mapping) and "FLY_API_TOKEN" in env:
        yield Error(
            "MACHINEQUEUE['ENV'] would give FLY_API_TOKEN to every task machine, and with it all of the app.",
            hint="Remove it: only a dispatcher needs the token.",
            id="machinequeue.E004",
        )


def _queues() -> Iterator[CheckMessage]:
    entries = {
        alias: params for alias, params in getattr(settings, "TASKS", {}).items() if params.get("BACKEND") in BACKENDS
    }
    if not entries:
        yield Caution(
            "machinequeue is installed, but no entry of TASKS uses it.",
            hint=f"TASKS = {{'default': {{'BACKEND': '{BACKEND}'}}}}",
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
