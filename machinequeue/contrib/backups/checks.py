"""What would make the nightly backup fail, as system-check messages.

Ids: E020 dbbackup is not installed, E021 no storage, E022 an unknown database, E023 and E024 encryption without key or
gpg, E025 no pg_dump, E026 the database is away, E027 pg_dump is too old, E028 the storage refuses; W020 no fixed name,
W021 dbbackup's mail handler, W022 too little disk, W023 checksums that a store may refuse, W024 an unknown queue.
"""

from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Caution

from machinequeue import backups, conf
from machinequeue.errors import ConfigurationError


def check_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """What settings alone tell."""
    try:
        return _messages(backups.in_settings())
    except ConfigurationError:
        return []  # machinequeue.E001 says so


def check_world(app_configs: Any = None, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """What server, programs, disk and storage tell; asked only with `check --deploy --database default`."""
    if any(each.serious for each in backups.in_settings()):
        return []  # the other check says so
    wanted = [alias for alias in conf.settings().backup_databases if alias in (databases or ())]
    return _messages(problem for alias in wanted for problem in backups.in_the_world(alias))


def _messages(problems: Iterable[backups.Problem]) -> list[CheckMessage]:
    return [
        (Error if each.serious else Caution)(each.sentence, hint=each.remedy, id=each.id)
        for each in dict.fromkeys(problems)
    ]
