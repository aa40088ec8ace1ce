"""The pace of calls to Fly, shared by all dispatchers: when the next create, or list, of an app may be sent.

One row per app and action says when its next turn comes, by the database's clock. Taking a turn is one statement, so
however many ask at once, no two get the same one. (GCRA: a token bucket that is a single number.)
"""

from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper

from machinequeue.records import sql

BURST = 2.5
"""Turns at once after a rest. Fly allows 3; half a turn is kept, as calls may arrive closer together than they left."""
LONGEST_PENALTY = 60.0
"""Seconds for which a 429 can stop an app's calls, whatever it asks for."""


FROM_ROW = "FROM machinequeue_pace WHERE app = %s AND action = %s"


@dataclass(frozen=True)
class SharedPace:
    """Turns, `per_second` of each action of an app. A `Pace` for a MachinesClient."""

    per_second: float

    def reserve(self, app: str, action: str, longest: float) -> float:
        """Take a turn that comes within `longest` seconds; seconds until then. More than `longest`: none was taken."""
        connection = sql.connection()
        step = 1 / self.per_second
        slack = (BURST - 1) * step
        row = sql.fetch(connection, _take(connection), [app, action, step - slack, slack, step, longest, step])
        return max(0.0, row[0]) if row else self._next(connection, app, action, longest)

    def _next(self, connection: BaseDatabaseWrapper, app: str, action: str, longest: float) -> float:
        now = _clock(connection)
        row = sql.fetch(connection, f"SELECT free_at - {now} {FROM_ROW}", [app, action])
        seconds = float(row[0]) if row else 0.0
        if seconds > 2 * LONGEST_PENALTY:  # the database's clock was set back
            sql.execute(connection, f"DELETE {FROM_ROW} AND free_at > {now} + %s", [app, action, 2 * LONGEST_PENALTY])
        # A moment ago it was too late; that it just is not any more changes nothing, since no turn was taken.
        return max(seconds, longest + 0.1)

    def refused(self, app: str, action: str, seconds: float) -> None:
        """Fly answered 429: give no turn within so many seconds."""
        connection = sql.connection()
        now, later = _clock(connection), _later(connection)
        statement = f"UPDATE machinequeue_pace SET free_at = {later}(free_at, {now} + %s)"  # noqa: S608 - our own words
        sql.execute(
            connection, f"{statement} WHERE app = %s AND action = %s", [min(seconds, LONGEST_PENALTY), app, action]
        )


def _take(connection: BaseDatabaseWrapper) -> str:
    # The clock is read anew in each expression: who waited for the row's lock must not compare with the time before.
    now, later = _clock(connection), _later(connection)
    return f"""
        INSERT INTO machinequeue_pace AS pace (app, action, free_at) VALUES (%s, %s, {now} + %s)
        ON CONFLICT (app, action) DO UPDATE SET free_at = {later}(pace.free_at, {now} - %s) + %s
        WHERE pace.free_at <= {now} + %s
        RETURNING free_at - %s - {now}
    """  # noqa: S608 - our own words


def _clock(connection: BaseDatabaseWrapper) -> str:
    """The database's clock in seconds since the epoch, as SQL."""
    if sql.is_postgresql(connection):
        return "EXTRACT(EPOCH FROM CLOCK_TIMESTAMP())::double precision"
    return "((JULIANDAY('now') - 2440587.5) * 86400.0)"


def _later(connection: BaseDatabaseWrapper) -> str:
    """The greater of two numbers, as SQL."""
    return "GREATEST" if sql.is_postgresql(connection) else "MAX"
