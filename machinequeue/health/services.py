"""The two services beside Fly: the database, without which nothing works, and Redis, which only makes it faster."""

import logging
from contextlib import closing

from django.db import DatabaseError, InterfaceError, connections
from django.utils.translation import gettext_lazy as _

from machinequeue import conf, wakeups
from machinequeue.health.answers import Answer, failure, ok, warning
from machinequeue.records import sql

logger = logging.getLogger("machinequeue.health")

CONNECT_SECONDS = 2


def database() -> Answer:
    """Whether a new connection to the database can be had and answers, with one query.

    On PostgreSQL it gives up after two seconds; a server that hangs later than that is for who asks to bound.
    """
    alias = sql.alias()
    try:
        with closing(_connection(alias)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    except (DatabaseError, InterfaceError) as error:
        # What the driver says names hosts and users: it is for the log, not for whoever may ask a load balancer's page.
        logger.warning("Health: the database %s does not answer: %s", alias, error)
        return failure(
            _("The database “%(database)s” does not answer."),
            _("Is the server up, and has it connections left? The log says what the driver said."),
            database=alias,
        )
    return ok(_("The database “%(database)s” answers."), database=alias)


def _connection(alias: str):  # type: ignore[no-untyped-def]  # a BaseDatabaseWrapper that is not the thread's
    connection = connections.create_connection(alias)
    if connection.vendor == "postgresql":
        options = connection.settings_dict.get("OPTIONS", {})
        bounded = {"connect_timeout": CONNECT_SECONDS, **options}
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": bounded}
    return connection


def carrier() -> Answer:
    """Whether wake-ups can be carried. Never a failure: without them a dispatcher looks every second."""
    redis = bool(conf.settings().redis_url)
    problem = wakeups.probe()
    if not problem:
        return ok(
            _("Redis takes wake-ups.") if redis else _("Wake-ups are carried by a file on this computer."),
            carrier="redis" if redis else "file",
        )
    return warning(
        _("Wake-ups cannot be carried: %(problem)s. Runs start up to a second later.")
        if redis
        else _("The file of the wake-ups cannot be written: %(problem)s. Runs start up to a second later."),
        _("Start Redis, or make room in it; no run is lost meanwhile.")
        if redis
        else _("Let the site write to its STATE_DIR."),
        carrier="redis" if redis else "file",
        problem=problem,
    )
