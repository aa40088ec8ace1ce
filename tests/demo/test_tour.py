"""`make demo ARGS=--serverless`, as a person runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_receipt_is_made_on_a_machine_that_stops_and_comes_back(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    ended = subprocess.run(
        [sys.executable, "-m", "demo_site.demo", "--serverless"],
        cwd=ROOT,
        env={**kept, "DEMO_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=360,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert ended.stderr == ""
    served = re.findall(r"bytes from machine (\w+) in", ended.stdout)
    web = re.search(r"one web machine, (\w+)", ended.stdout)
    assert web is not None
    in_place, made, other_page, came_back = served
    assert (in_place, other_page) == (web[1], web[1])
    assert made == came_back != web[1]
    assert f"Machine {made} stopped" in ended.stdout
    ours = [each.pid for each in psutil.process_iter() if _is_of(each, str(tmp_path))]
    assert ours == []


def _is_of(process: psutil.Process, folder: str) -> bool:
    try:
        return process.environ().get("DEMO_STATE_DIR") == folder
    except psutil.Error:
        return False
