"""The only writer of rows, and the queries that others may ask; a file per aggregate.

Each writing function is one legal transition, compare-and-set: it returns None or False when it lost the race.
Times are the database's. Writes of an attempt carry its epoch, so that a process presumed dead changes nothing.

The rows themselves are named here for those who are handed one; changing them is for the functions.
"""

from machinequeue.models import Attempt, Backup, Machine, RestoreDrill, Schedule, ServerlessMachine, TaskRun

__all__ = ["Attempt", "Backup", "Machine", "RestoreDrill", "Schedule", "ServerlessMachine", "TaskRun"]
