"""Backups: whether the next one would work, whether there is one, and whether it was proven to restore."""

import shutil
from collections.abc import Iterator

from django.apps import apps
from django.conf import settings as django_settings

from machinequeue import backups as copying
from machinequeue.backups.problems import major_of
from machinequeue.doctor.facts import Facts
from machinequeue.doctor.findings import Blocked, Finding, Status, failure, fine, skipped, translated, warning
from machinequeue.health import Answer, copies

ABOUT_PG_DUMP = frozenset({"machinequeue.E025", "machinequeue.E026", "machinequeue.E027"})
"""What `pg_dump` and `database` say already."""


def pg_dump(facts: Facts) -> Iterator[Finding]:
    """Is there a pg_dump that is not older than the server?"""
    found = facts.database()
    if found.vendor != "postgresql":
        yield skipped("The database is not PostgreSQL.")
        return
    remedy = (
        f"Install the client of PostgreSQL {found.major} or newer in the image: the package postgresql-client-"
        f"{found.major} from apt.postgresql.org."
    )
    if shutil.which("pg_dump") is None and not _backs_up():
        yield skipped("There is no pg_dump here, and no backups are set up.")
    elif (major := major_of("pg_dump")) is None:
        yield failure("There is no pg_dump here that runs: a backup of PostgreSQL cannot be made.", remedy)
    elif major < found.major:
        yield failure(
            f"pg_dump is of version {major}, the server of {found.major}: it refuses to dump a newer server.", remedy
        )
    else:
        yield fine(f"pg_dump {major} can dump the server, which is {found.version}.")


def _backs_up() -> bool:
    return apps.is_installed(copies.APP) or "dbbackup" in getattr(django_settings, "STORAGES", {})


def storage(facts: Facts) -> Iterator[Finding]:
    """Can backups be written to their storage and read back, and is there room to make them?"""
    if not _backs_up():
        yield skipped(str(copies.NONE_HERE))
        return
    read = facts.settings()
    if any(each.serious for each in copying.in_settings()):
        raise Blocked("settings")
    facts.database()
    problems = [each for name in read.backup_databases for each in copying.in_the_world(name)]
    found = [each for each in dict.fromkeys(problems) if each.id not in ABOUT_PG_DUMP]
    for each in found:
        yield (failure if each.serious else warning)(each.sentence, each.remedy)
    if not found:
        yield fine("A file was written to STORAGES['dbbackup'], read back and deleted.")


def backups(facts: Facts) -> Iterator[Finding]:
    """Is there a good backup of yesterday or today?"""
    facts.database()
    if not copies.expected():
        yield skipped(str(copies.NONE_HERE))
        return
    for name in facts.settings().backup_databases:
        yield _unless_in_development(facts, copies.backup(name))


def _unless_in_development(facts: Facts, answer: Answer) -> Finding:
    """At a desk a backup may be missing or old; one that was tried and failed is of interest there too."""
    found = translated(answer)
    failed = answer.figures.get("error") or answer.figures.get("reason")
    if found.status == Status.OK or failed or not (facts.is_local() and django_settings.DEBUG):
        return found
    return skipped(f"In development nobody minds: {found.sentence}")


def drill(facts: Facts) -> Iterator[Finding]:
    """Was a backup proven to restore?"""
    facts.database()
    if not copies.expected():
        yield skipped(str(copies.NONE_HERE))
        return
    for name in facts.settings().backup_databases:
        yield _unless_in_development(facts, copies.drill(name))
