"""A server that begins, and lets its machine end, when a test says so.

`python -m tests.serverless.site.gated FOLDER WORD ...`: while FOLDER/closed is there the server does not begin; while
FOLDER/kept is there a machine that was asked to stop goes on stopping, with a server that has ended already.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

LOOK_SECONDS = 0.02


def main() -> int:
    """Run the server; its exit code."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    while (folder / "closed").exists() and not asked:
        time.sleep(LOOK_SECONDS)
    if asked:
        return 0
    with subprocess.Popen([sys.executable if word == "python" else word for word in command]) as server:
        while server.poll() is None and not asked:
            time.sleep(LOOK_SECONDS)
        if server.poll() is None:
            server.terminate()
        code = server.wait()
    while (folder / "kept").exists() and asked:
        time.sleep(LOOK_SECONDS)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
