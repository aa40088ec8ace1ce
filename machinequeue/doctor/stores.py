"""The database and what carries wake-ups."""

import secrets
from collections.abc import Iterator

from django.db import Error
from django.db import connections as databases

from machinequeue import conf
from machinequeue import wakeups as carriers
from machinequeue.doctor.facts import Facts
from machinequeue.doctor.findings import Finding, failure, fine, skipped, warning
from machinequeue.records import migrations as schema
from machinequeue.records import server, sql
from machinequeue.runner.news import News

FAR_MILLISECONDS = 30.0
ECHO_SECONDS = 5.0
SHARE_OF_CONNECTIONS = 0.8
"""The rest is for the site, its dispatchers and whoever looks after the server."""


def database(facts: Facts) -> Iterator[Finding]:
    """Does the database answer, and how fast?"""
    place = _place()
    try:
        found = facts.database(own=True)
    except Error as error:
        yield failure(
            f"The database {place} cannot be used: {_line(error)}.",
            "Check DATABASES (host, port, name, user, password) and that the server runs and may be reached from here; "
            "on Fly a database is only reached from inside its organisation's network, or through fly proxy.",
        )
        return
    what = "SQLite" if found.vendor == "sqlite" else "PostgreSQL"
    named = f"{what} {found.version}{' ' if found.vendor == 'sqlite' else ', database '}{place}"
    through = ", through a pooler" if found.pooled else ""
    if found.milliseconds > FAR_MILLISECONDS:
        yield warning(
            f"{named} takes {found.milliseconds:.0f} ms to answer: each run needs several round trips.",
            "Run the app, its dispatcher and its queues' regions where the database is, or look for what slows it.",
        )
        return
    soon = f", answers in {found.milliseconds:.1f} ms" if found.vendor != "sqlite" else ""
    yield fine(f"{named}{through}{soon}.")


def _place() -> str:
    known = databases[sql.alias()].settings_dict
    if databases[sql.alias()].vendor == "sqlite":
        return f"in {known['NAME']}"
    return f"{known['NAME']} at {known.get('HOST') or 'this computer'}:{known.get('PORT') or 5432}"


def _line(error: Exception) -> str:
    """The first line of what a driver says, which is the one that matters."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def migrations(facts: Facts) -> Iterator[Finding]:
    """Are all migrations applied?"""
    facts.database()
    if reason := schema.unapplied():
        what, _, _ = reason.partition(";")
        yield failure(f"{what[:1].upper()}{what[1:]}.", "Run manage.py migrate (on Fly: as the release_command).")
    else:
        yield fine("All migrations are applied.")


def sqlite(facts: Facts) -> Iterator[Finding]:
    """Is a SQLite file set up for several processes that write?"""
    if facts.database().vendor != "sqlite":
        yield skipped("The database is not SQLite.")
        return
    found = []
    if facts.on_fly():
        found.append(
            failure(
                "The database is a file in this machine: task machines, which are other computers, never see its rows.",
                "Use PostgreSQL on Fly: fly mpg create, then set DATABASE_URL as a secret.",
            )
        )
    options = databases[sql.alias()].settings_dict.get("OPTIONS", {})
    if (mode := server.journal_mode()) != "wal":
        found.append(
            warning(
                f"SQLite's journal mode is {mode}, in which readers block writers.",
                "Add 'init_command': 'PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL' to OPTIONS of the database.",
            )
        )
    if options.get("transaction_mode") != "IMMEDIATE":
        found.append(
            warning(
                "SQLite begins transactions as DEFERRED: two writers can fail with 'database is locked'.",
                "Add 'transaction_mode': 'IMMEDIATE', 'timeout': 30 to OPTIONS of the database.",
            )
        )
    yield from found or [fine("Write-ahead log, and transactions that begin as writers.")]


def connections(facts: Facts) -> Iterator[Finding]:
    """Has the database connections for as many machines as may run?"""
    read = facts.settings()
    if facts.database().vendor != "postgresql":
        yield skipped("SQLite has no limit of connections.")
        return
    count, machines = server.connections(), conf.most_machines(read)
    wanted, room = machines * conf.CONNECTIONS_PER_MACHINE, int((count.most - count.kept) * SHARE_OF_CONNECTIONS)
    if facts.database().pooled:
        yield skipped("A pooler shares the server's connections; its own limits say how many machines it serves.")
    elif wanted > room:
        yield warning(
            f"{machines} machines may hold {wanted} connections; of the server's {count.most} about {room} can be "
            f"spared "
            f"({count.used} are taken now).",
            f"Set MACHINEQUEUE['DATABASE_CONNECTIONS'] to {room} (which bounds the machines), raise max_connections, "
            "or put a pooler in between.",
        )
    else:
        yield fine(f"{machines} machines may hold {wanted} of {count.most} connections; {count.used} are taken now.")


def listen(facts: Facts) -> Iterator[Finding]:
    """Do notifications of PostgreSQL arrive on the connection that a waiting machine uses?"""
    if facts.database().vendor != "postgresql":
        yield skipped("SQLite notifies nobody; machines that wait look four times a second.")
        return
    word = secrets.token_hex(8)
    news = News("machinequeue_doctor", lambda payload: payload == word)
    news.listen()
    server.notify("machinequeue_doctor", word)
    if news.wait(ECHO_SECONDS):
        yield fine("A notification came back.")
        return
    yield warning(
        f"LISTEN was accepted, but a notification did not arrive within {ECHO_SECONDS:g} s: machines that wait for "
        f"work "
        "learn of it, and runs of their cancellation, only when they look, every two seconds.",
        "A pooler that shares connections between transactions swallows notifications (PgBouncer's pool_mode "
        "transaction). Give the app the direct address of the server, or a pool of pool_mode session.",
    )


def wakeups(facts: Facts) -> Iterator[Finding]:
    """Does what carries wake-ups answer, and keep what it is given?"""
    facts.settings()
    try:
        found = carriers.transport()
    except carriers.WakeupsUnreachable as error:
        yield warning(
            f"Wake-ups cannot be sent: {_line(error)}. No run is lost; each starts up to a second later.",
            "Check REDIS_URL and that Redis runs and may be reached from here; unset it to use a file where site and "
            "dispatcher share a disk.",
        )
        return
    if found.kind == "file":
        yield from _file(facts, found)
    elif found.eviction and found.eviction != "noeviction":
        yield warning(
            f"Redis {found.version} at {found.place} evicts keys when it is full ({found.eviction}), wake-ups among "
            f"them.",
            "Set maxmemory-policy to noeviction: redis-cli config set maxmemory-policy noeviction, or create Upstash "
            "Redis on Fly with eviction disabled. A cache that needs eviction wants a Redis of its own.",
        )
    else:
        policy = found.eviction or "eviction policy not told"
        yield fine(f"Redis {found.version} at {found.place} answers in {found.milliseconds:.1f} ms ({policy}).")


def _file(facts: Facts, found: carriers.Transport) -> Iterator[Finding]:
    if facts.on_fly():
        yield warning(
            "Wake-ups go through a file, which the web machines and the dispatcher's do not share: each run starts up "
            "to a second later.",
            "Set REDIS_URL for both (fly redis create), or live with the second.",
        )
    else:
        yield fine(f"Wake-ups go through the file {found.place}.")
