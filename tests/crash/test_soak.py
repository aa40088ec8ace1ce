"""A short soak, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connection

SECONDS = 25


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_chaos_loses_nothing_records_nothing_twice_and_leaves_nothing_behind() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("the soak makes a PostgreSQL database of its own, whatever the tests use")
    command = [sys.executable, "-m", "tests.crash.soak", "--minutes", str(SECONDS / 60), "--drain-seconds", "200"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"lost=0 recorded_twice=0 left_behind=0 runs=(\d+) kills=(\d+)", last)
    assert found, last
    assert int(found[1]) > SECONDS
    assert int(found[2]) > SECONDS / 4
