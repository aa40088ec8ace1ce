"""`python -m demo_site.tether COMMAND ...`: a management command that ends with the process that started it.

Its standard input is the tether: it ends when the starter ends, however that comes about.
"""

import os
import signal
import sys
import threading

from django.core.management import execute_from_command_line


def main() -> None:
    threading.Thread(target=_watch, daemon=True).start()
    execute_from_command_line(["manage.py", *sys.argv[1:]])


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
