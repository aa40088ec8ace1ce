"""Inside a machine: a template that is forked, a supervisor that holds the claim, and task processes.

The supervisor is the process that the machine starts: it has the database connection, the clock and the signals, and
runs no user code. The template is forked from it before any connection or thread exists; it imports the tasks and
forks a process per run, one ahead of need. A crash, a hang or a kill takes a task process only; the supervisor says
what happened. Nothing here knows Redis, HTTP or Fly.
"""
