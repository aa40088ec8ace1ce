"""The fixture for other projects, in a project of another, with a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from machinequeue.machines.server_process import PACKAGE_ROOT

PROJECT = {
    "conftest.py": """
        import pytest
        pytest_plugins = ["machinequeue.machines.pytest_plugin"]
    """,
    "test_usual.py": """
        import sys

        def test_one(machines_emulator):
            with machines_emulator.client() as client:
                assert client.app()["name"] == "emulated"
            machines_emulator.faults.freeze()
            assert "django" not in sys.modules

        def test_another_has_no_faults(machines_emulator):
            assert machines_emulator.faults.list() == []
            assert machines_emulator.machines() == []
    """,
    "test_own.py": """
        import pytest

        @pytest.fixture
        def machines_emulator_options(tmp_path):
            return {"app": "shop", "images": {"shop:v1": tmp_path}, "region": "cdg"}

        def test_options(machines_emulator):
            assert (machines_emulator.app, machines_emulator.region) == ("shop", "cdg")
    """,
}


@pytest.mark.slow
def test_a_project_asks_for_an_emulator_by_name(tmp_path: Path) -> None:
    for name, lines in PROJECT.items():
        text = "\n".join(line.removeprefix(" " * 8) for line in lines.splitlines())
        (tmp_path / name).write_text(text)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:django", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        [*words, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGE_ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
