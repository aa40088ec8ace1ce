"""`python -m machinequeue.machines.proxy`."""

from __future__ import annotations

import importlib.util
import sys

from machinequeue.machines.proxy.options import parse


def main() -> int:
    """Run the edge; returns its exit status."""
    options = parse()
    if importlib.util.find_spec("uvicorn") is None:
        sys.stderr.write("edge: uvicorn is not installed; pip install 'machinequeue[emulator]'\n")
        return 1
    from machinequeue.machines.proxy.server import serve

    return serve(options)


if __name__ == "__main__":
    raise SystemExit(main())
