"""Dump a database, store it, prove that it restores, prune old ones.

The only room that knows django-dbbackup and the storages. A machine that executes it needs the database, the storage's
credentials and nothing else.
"""

from machinequeue.backups.drilling import drill, retrieve
from machinequeue.backups.problems import Problem, in_settings, in_the_world, preflight
from machinequeue.backups.storage import stored_names
from machinequeue.backups.taking import back_up, back_up_media, prune, sweep

__all__ = [
    "Problem",
    "back_up",
    "back_up_media",
    "drill",
    "in_settings",
    "in_the_world",
    "preflight",
    "prune",
    "retrieve",
    "stored_names",
    "sweep",
]
