"""`python -m machinequeue.machines.emulator`."""

from __future__ import annotations

import importlib.util
import sys

from machinequeue.machines.emulator.host import fork_host
from machinequeue.machines.emulator.options import parse


def main() -> int:
    """Run the emulator; returns its exit status."""
    options = parse()
    absent = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if absent:
        sys.stderr.write(f"emulator: {', '.join(absent)} is not installed; pip install 'machinequeue[emulator]'\n")
        return 1
    # Before the server is imported: what is small when it forks, forks quickly.
    _, host = fork_host()
    from machinequeue.machines.emulator.server import serve

    return serve(options, host)


if __name__ == "__main__":
    raise SystemExit(main())
