"""The demo as a person runs it, on PostgreSQL and Redis: machines make the files, a browser watches one being made."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from pypdf import PdfReader

from tests import services
from tests.browsers import chromium

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 120


class Demo:
    """`python -m demo_site.demo --serve`, its words read line by line."""

    def __init__(self, state_dir: Path, **environment: str) -> None:
        self.record = state_dir / "demo.json"
        self.said = ""
        self._lines: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demo_site.demo", "--serve", "--purchases", "6", "--json", str(self.record)],
            cwd=ROOT,
            env={**os.environ, "DEMO_STATE_DIR": str(state_dir), "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, pattern: str) -> re.Match[str]:
        while (found := re.search(pattern, self.said)) is None:
            line = self._lines.get(timeout=DEADLINE)
            assert line, f"the demo ended before it said {pattern!r}:\n{self.said}"
            self.said += line
        return found

    def end(self) -> int:
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(DEADLINE)
        finally:
            self._process.kill()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with services.postgres_database() as database, services.redis_database() as redis:
        started = Demo(tmp_path, DATABASE_URL=database, REDIS_URL=redis)
        try:
            yield started
        finally:
            started.end()


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_visitor_watches_a_receipt_being_made(demo: Demo, browser: Browser, tmp_path: Path) -> None:
    address = demo.wait_for(r"Shop:  (http://127\.0\.0\.1:\d+/)")[1]
    assert "WRONG" not in demo.said
    runs = json.loads(demo.record.read_text())["runs"]
    assert [run["label"] for run in runs] == [*(f"P-{number:06d}" for number in range(1, 7)), "S-0001"]
    page = browser.new_page()
    asked_elsewhere: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: None if request.url.startswith(address) else asked_elsewhere.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))

    page.goto(address)
    page.get_by_role("button", name="Put Overlap in the basket").click()
    page.get_by_label("Name").fill("Ada Novak")
    page.get_by_label("Email").fill("ada@example.com")
    page.get_by_label("City").fill("Graz")
    page.get_by_role("button", name="Place the purchase").click()
    expect(page.get_by_role("heading", name="Purchase P-000007")).to_be_visible()
    page.evaluate("window.neverReloaded = true")
    link = page.get_by_role("link", name="Download the receipt")
    expect(page.locator("[data-show=label]")).to_have_text(re.compile("Waiting for a machine|Being made|Ready"))
    expect(link).to_be_visible(timeout=60_000)
    assert page.evaluate("window.neverReloaded")
    expect(page.locator("[data-show=label]")).to_have_text("Ready")
    expect(page.locator("[data-show=machine]")).to_have_text(re.compile("^mq-default-"))
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "receipt.pdf")
    text = " ".join(PdfReader(tmp_path / "receipt.pdf").pages[0].extract_text().split())
    assert "P-000007" in text
    assert "Total €24.00" in text

    password = demo.wait_for(r"user demo, password (\w+)")[1]
    page.goto(f"{address}reports/")
    page.get_by_label("Username").fill("demo")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("link", name="Download the report")).to_be_visible()
    assert (asked_elsewhere, errors) == ([], [])
    assert demo.end() == 0
