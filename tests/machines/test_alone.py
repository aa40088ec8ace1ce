"""machines/ stands alone: it imports where Django is absent."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "django":
            raise ModuleNotFoundError(f"blocked: {name}")
sys.meta_path.insert(0, Absent())
import machinequeue.machines.client, machinequeue.machines.errors, machinequeue.machines.schema
from machinequeue.machines.emulator import Emulator
import machinequeue.machines.emulator.server
from machinequeue.machines.proxy import Edge
import machinequeue.machines.proxy.server
others = {name for name in sys.modules if name.startswith("machinequeue.")}
print(sorted(name for name in others if not name.startswith("machinequeue.machines")))
try:
    import django
except ModuleNotFoundError:
    print("no django")
"""


def test_it_imports_without_django_and_without_other_rooms() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\nno django\n", done.stderr


def test_what_forks_machines_imports_next_to_nothing() -> None:
    script = (
        "import sys, machinequeue.machines.emulator.host, machinequeue.machines.emulator.options; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert not {"asyncio", "starlette", "uvicorn", "httpx", "ssl", "threading"} & set(done.stdout.split())
