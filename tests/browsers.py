"""Chromium, for the tests that drive a page."""

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, Route, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, until the block ends."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    assert program, "No Chromium was found: install the package chromium, or run `make test` as root."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def strictly(route: Route) -> None:
    """Give every answer a strict Content-Security-Policy."""
    answer = route.fetch(max_redirects=0)
    route.fulfill(response=answer, headers={**answer.headers, "content-security-policy": POLICY})
