"""The front door: what `import machinequeue` gives, and what it does not bring along."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import machinequeue
from machinequeue import errors

ROOT = Path(machinequeue.__file__).parents[1]


def in_fresh_python(code: str) -> str:
    """What a new interpreter prints that has the package on its path and no Django settings."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


NO_DJANGO = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"django", "huey", "redis"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
"""


@pytest.mark.parametrize(
    "line",
    [
        "import machinequeue",
        "import machinequeue; machinequeue.__version__; dir(machinequeue)",
        "import machinequeue.machines",
        "from machinequeue.machines.client import MachinesClient",
        "from machinequeue.machines.emulator import Emulator; Emulator",
        "import machinequeue.machines.schema, machinequeue.machines.errors",
    ],
)
def test_it_imports_where_django_is_absent(line: str) -> None:
    assert in_fresh_python(f"{NO_DJANGO}\n{line}\nprint('fine')") == "fine\n"


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys, json; old = set(sys.modules); import machinequeue; print(json.dumps([*set(sys.modules) - old]))"
    brought = set(json.loads(in_fresh_python(code)))
    assert {name for name in brought if name.split(".")[0] in {"django", "httpx", "huey", "redis"}} == set()
    assert {name for name in brought if name.startswith("machinequeue.")} == set()


def test_the_errors_can_be_had_before_django_is_configured() -> None:
    code = "import machinequeue; print(issubclass(machinequeue.InvalidArguments, machinequeue.EnqueueError))"
    assert in_fresh_python(code) == "True\n"


def test_every_exported_name_is_there_and_listed() -> None:
    for name in machinequeue.__all__:
        assert getattr(machinequeue, name).__name__ == name
    assert dir(machinequeue) == sorted(machinequeue.__all__)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="module 'machinequeue' has no attribute 'machine_tsk'"):
        machinequeue.machine_tsk  # noqa: B018


def test_the_tree_of_errors() -> None:
    for kind in (errors.ConfigurationError, errors.EnqueueError, errors.WaitInsideTask):
        assert issubclass(kind, errors.MachineQueueError)
    assert issubclass(errors.InvalidArguments, (errors.EnqueueError, TypeError))
    for kind in (errors.TaskTimeout, errors.TaskCancelled):
        assert issubclass(kind, errors.TaskInterruption)
        assert not issubclass(kind, Exception), "`except Exception` in a task must let it pass"
    for kind in vars(errors).values():
        if isinstance(kind, type) and kind.__module__ == errors.__name__:
            assert kind.__doc__, kind
