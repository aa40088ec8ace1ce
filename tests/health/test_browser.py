"""The page in a browser: light and dark, narrow and wide, under a strict Content-Security-Policy, read by tools."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from playwright.sync_api import Page, expect

from machinequeue.records import dispatchers
from tests.admin import rows
from tests.browsers import chromium, strictly
from tests.health.test_report import ago, made

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

WAIT = 30_000


@pytest.fixture
def page(live_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page of nobody yet. Whatever the console complains of fails the test, but for the statuses meant."""
    # Playwright's loop runs in this thread, where Django would refuse to touch the database.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    complaints: list[str] = []
    with chromium() as browser:
        page = browser.new_context(base_url=live_server.url).new_page()
        page.set_default_timeout(WAIT)
        meant = "Failed to load resource: the server responded with a status of"
        page.on("console", lambda said: complaints.append(said.text) if not said.text.startswith(meant) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.route("**/*", strictly)
        yield page
        page.goto("about:blank")
        connections.close_all()  # Django keeps other connections for a thread while a loop runs in it
    assert complaints == []


def trouble() -> None:
    """A warning, failures, and long sentences."""
    dispatchers.seen("web-1-41-a1b2c3")
    run = rows.enqueue(queue="reports")
    ago(run, 900, "run_after")
    rows.hold_back(run)
    rows.refuse_token()
    backup = made()
    ago(backup, 40 * 3600, "started_at")


def test_a_stranger_is_sent_to_log_in_and_comes_back(page: Page) -> None:
    User.objects.create_superuser("operator", password="op")
    dispatchers.seen("web-1-41-a1b2c3")
    page.goto("/ht/")
    expect(page.locator("h1")).to_have_text("For staff only")
    page.get_by_role("link", name="Log in").click()
    page.fill("#id_username", "operator")
    page.fill("#id_password", "op")
    page.press("#id_password", "Enter")
    page.wait_for_url("**/ht/")
    expect(page.locator("h1")).to_have_text("All is well")
    expect(page.locator(".checks li")).to_have_count(10)


def test_what_is_wrong_is_seen_and_heard(page: Page, token: str) -> None:
    trouble()
    page.goto(f"/ht/?token={token}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Something is broken")
    checks = page.get_by_role("list", name="Checks").get_by_role("listitem")
    backlog = checks.filter(has_text="Waiting runs")
    expect(backlog.get_by_role("heading", level=2)).to_have_text("Waiting runs")
    expect(backlog.locator(".badge")).to_have_text("Warning")
    expect(backlog.locator(".remedy")).to_contain_text("says why it waits")
    expect(checks.filter(has_text="The newest backup is 40 h old").locator(".badge")).to_have_text("Failure")
    assert page.title() == "Something is broken"
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_and_nothing_sticks_out(page: Page, token: str, scheme: str) -> None:
    trouble()
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for width in (1360, 375):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"/ht/?token={token}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for found in page.evaluate(CONTRASTS):
            assert found["contrast"] >= 4.5, (scheme, width, found)


CONTRASTS = """() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = numbers(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("h1, h2, p, .badge")].map((element) => {
    const [one, two] = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
    return {text: element.textContent.trim().slice(0, 30),
            contrast: (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05)};
  });
}"""
