"""`mq_dev` in a project with serverless views: the edge runs too, with the site behind it."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ports import free_port
from tests.serverless.conftest import DEADLINE, ROOT
from tests.waiting import until
from tests.world import World


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_command_shows_a_serverless_view(tmp_path: Path) -> None:
    more = {"DJANGO_SETTINGS_MODULE": "tests.serverless.site.settings", "PYTHONPATH": str(ROOT)}
    world = World(tmp_path, redis_url="", url=f"sqlite://{tmp_path}/workshop.sqlite3", more=more)
    site, edge, api = free_port(), free_port(), f"http://127.0.0.1:{free_port()}"
    migrated = world.command("migrate", "--verbosity", "0")
    until(lambda: migrated.popen.poll() is not None, DEADLINE, lambda: migrated.said)
    dev = world.command("mq_dev", f"127.0.0.1:{site}", "--noreload", "--edge-port", str(edge), FLY_API_HOSTNAME=api)

    def asked(path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{edge}{path}", timeout=DEADLINE) as answer:
            told: dict[str, Any] = json.loads(answer.read())
            return told

    family: list[psutil.Process] = []
    try:
        until(lambda: "edge ready" in dev.said or dev.popen.poll() is not None, DEADLINE, lambda: dev.said)
        assert dev.popen.poll() is None, dev.said
        assert not asked("/plain/")["serverless"]
        until(lambda: asked("/listed/")["serverless"], DEADLINE, lambda: dev.said)
        family = psutil.Process(dev.popen.pid).children(recursive=True)
    finally:
        status = dev.end()
    assert status == 0, dev.said
    assert not psutil.wait_procs(family, timeout=DEADLINE)[1]
