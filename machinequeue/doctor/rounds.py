"""One examination after the other, each within its time, whatever the others met."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from django.db import Error, connections
from django.utils.translation import override

from machinequeue.conf import suggest
from machinequeue.doctor import dumps, fly, ground, setup, stores, work
from machinequeue.doctor.facts import Facts
from machinequeue.doctor.findings import Blocked, Finding, Status, blocked, failure
from machinequeue.machines.errors import MachinesError
from machinequeue.records import migrations

SECONDS = 15.0
SHORTEST_SECRET = 8

Examine = Callable[[Facts], Iterable[Finding]]

EXAMINATIONS: dict[str, Examine] = {
    "settings": setup.settings,
    "environment": setup.environment,
    "packages": setup.packages,
    "timeouts": setup.timeouts,
    "disk": ground.disk,
    "database": stores.database,
    "migrations": stores.migrations,
    "sqlite": stores.sqlite,
    "connections": stores.connections,
    "listen": stores.listen,
    "wakeups": stores.wakeups,
    "app": fly.app,
    "token": fly.token,
    "image": fly.image,
    "release": fly.release,
    "regions": fly.regions,
    "drift": fly.drift,
    "leaks": fly.leaks,
    "grace": fly.grace,
    "clock": ground.clock,
    "dispatcher": work.dispatcher,
    "backlog": work.backlog,
    "machines": work.machines,
    "schedules": work.schedules,
    "circuits": work.circuits,
    "queues": work.queues,
    "cpu": work.cpu,
    "pg_dump": dumps.pg_dump,
    "storage": dumps.storage,
    "backups": dumps.backups,
    "drill": dumps.drill,
}
"""By name, in the order in which they are made: what others stand on comes first."""


@dataclass(frozen=True)
class Report:
    """What one examination found, and how many seconds it took."""

    name: str
    findings: tuple[Finding, ...]
    seconds: float


class UnknownExamination(ValueError):
    """There is no examination of this name; the text says which there are."""


def question(name: str) -> str:
    """What an examination asks, in a line."""
    return (EXAMINATIONS[name].__doc__ or "").partition("\n")[0]


def chosen(names: Iterable[str]) -> list[str]:
    """These examinations in their order, all without any. Raises UnknownExamination."""
    wanted = list(names)
    for name in wanted:
        if name not in EXAMINATIONS:
            raise UnknownExamination(f"There is no examination {name!r}.{suggest(name, EXAMINATIONS)}")
    return [name for name in EXAMINATIONS if not wanted or name in wanted]


def examine(names: Iterable[str] = (), seconds: float = SECONDS) -> Iterator[Report]:
    """Make the examinations of these names, or all; each gets at most so many seconds. Raises UnknownExamination."""
    facts = Facts(seconds)
    try:
        for name in chosen(names):
            began = time.monotonic()
            findings = _within(seconds, EXAMINATIONS[name], facts)
            shown = tuple(_without(facts.secrets(), finding) for finding in findings)
            yield Report(name, shown, time.monotonic() - began)
    finally:
        facts.close()


def _within(seconds: float, examination: Examine, facts: Facts) -> list[Finding]:
    """What it finds in a thread of its own, which is left behind when it hangs: nothing can end it from outside."""
    found: list[Finding] = []
    done = threading.Event()

    def work() -> None:
        try:
            with override(None):  # in one language, whatever the site's own is
                found.extend(_guarded(examination, facts))
        finally:
            connections.close_all()
            done.set()

    threading.Thread(target=work, name="mq_doctor", daemon=True).start()
    if done.wait(seconds):
        return found
    return [
        failure(
            f"There was no answer within {seconds:g} s.",
            "What it asks hangs: a firewall that drops packets, a lock in the database, a server that is overloaded. "
            "Try again with a longer --timeout to tell slow from dead.",
        )
    ]


def _guarded(examination: Examine, facts: Facts) -> list[Finding]:
    try:
        return list(examination(facts))
    except Blocked as error:
        return [blocked(error.examination)]
    except MachinesError as error:
        return [failure(f"The Machines API refused: {error}.", error.advice)]
    except Error as error:
        if migrations.may_be_missing(error):
            return [blocked("migrations")]
        return [failure(f"The database refused: {error}.".replace("\n", " "), "Mend what `database` finds first.")]
    except Exception as error:
        # Whatever it is, the other examinations are still of use.
        return [
            failure(
                f"It could not be examined: {type(error).__name__}: {error}.",
                "This is a mistake of machinequeue's: please report it with this line.",
            )
        ]


def _without(secrets: set[str], finding: Finding) -> Finding:
    """The finding without what is secret, should somebody's error have quoted it."""
    sentence, remedy = finding.sentence, finding.remedy
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            sentence, remedy = sentence.replace(secret, "[hidden]"), remedy.replace(secret, "[hidden]")
    return Finding(finding.status, sentence, remedy)


def worst(reports: Iterable[Report]) -> Status:
    """The worst status of all findings."""
    order = [Status.FAILURE, Status.BLOCKED, Status.WARNING, Status.OK]
    there = {finding.status for report in reports for finding in report.findings}
    return next((status for status in order if status in there), Status.OK)
