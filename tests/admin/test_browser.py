"""The admin in a browser: pages without errors under a strict Content-Security-Policy, buttons, a page that is live."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.urls import reverse
from playwright.sync_api import ConsoleMessage, Page, expect

from machinequeue.models import Dispatcher, Machine, Queue
from machinequeue.records import claims, runs
from tests.admin import rows
from tests.browsers import chromium, strictly
from tests.workshop import tasks

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

WAIT = 15_000


@pytest.fixture
def page(live_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page of an operator who has logged in. Whatever the console complains of fails the test."""
    # Playwright's loop runs in this thread, where Django would refuse to touch the database.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "favicon.ico" not in str(message.location):
            complaints.append(f"{message.text} {message.location}")

    User.objects.create_superuser("operator", password="op")
    with chromium() as browser:
        page = browser.new_context(base_url=live_server.url, color_scheme="dark").new_page()
        page.set_default_timeout(WAIT)
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.route("**/*", strictly)
        page.goto("/admin/login/")
        page.fill("#id_username", "operator")
        page.fill("#id_password", "op")
        page.press("#id_password", "Enter")
        page.wait_for_url("**/admin/")
        yield page
        page.goto("about:blank")  # no refresh is under way when the rows are flushed
        connections.close_all()  # Django keeps other connections for a thread while a loop runs in it
    assert complaints == []


def _page_of(row: Any) -> str:
    return reverse(f"admin:machinequeue_{row._meta.model_name}_change", args=[row.pk])


@pytest.mark.slow
def test_every_page_opens(page: Page) -> None:
    made = rows.one_of_each()
    circuit, profile = rows.hold_back(made["ready"]), rows.learn()
    models = ("taskrun", "machine", "queue", "dispatcher", "circuit", "taskprofile")
    addresses = [reverse(f"admin:machinequeue_{model}_changelist") for model in models]
    some: list[Any] = [*made.values(), *Machine.objects.all(), Dispatcher.objects.earliest("pk"), circuit, profile]
    addresses += [_page_of(row) for row in [*some, Queue.objects.get(name="images")]]
    addresses += [
        reverse("admin:machinequeue_taskrun_retry", args=[made["failed"].pk]),
        reverse("admin:machinequeue_circuit_try_again", args=[circuit.pk]),
        reverse("admin:machinequeue_taskprofile_forget_memory", args=[profile.pk]),
        reverse("admin:machinequeue_taskrun_history", args=[made["failed"].pk]),
        "/admin/machinequeue/",
    ]
    for address in addresses:
        answer = page.goto(address)
        assert answer is not None
        assert answer.status == 200, address
        expect(page.locator("#content h1")).to_be_visible()


@pytest.mark.parametrize("width", [1360, 480])
def test_nothing_sticks_out_of_a_page(page: Page, width: int) -> None:
    made = rows.one_of_each()
    circuit, profile = rows.hold_back(made["ready"]), rows.learn()
    page.set_viewport_size({"width": width, "height": 900})
    for address in (
        reverse("admin:machinequeue_taskrun_changelist"),
        _page_of(made["failed"]),
        _page_of(made["successful"]),
        _page_of(Machine.objects.latest("pk")),
        _page_of(circuit),
        _page_of(profile),
        *(reverse(f"admin:machinequeue_{model}_changelist") for model in ("queue", "circuit", "taskprofile")),
    ):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        columns = page.locator(".form-multiline").first
        if columns.count():
            ends = columns.evaluate("row => [...row.children].map(each => each.getBoundingClientRect().right)")
            assert max(ends) <= width, f"a field of {address} runs into the next one, or out of the page"


def test_retry_then_cancel(page: Page) -> None:
    run = rows.fail(rows.start(rows.enqueue(max_attempts=1)))
    page.goto(reverse("admin:machinequeue_taskrun_changelist"))
    page.click("#result_list >> text=make_receipt")
    page.click(".object-tools >> text=Retry")
    expect(page.locator("h1")).to_have_text("Try this run again?")
    page.click("text=Go back")
    assert runs.status(run.pk) == "FAILED"
    page.click(".object-tools >> text=Retry")
    page.click("input[type=submit][value=Retry]")
    expect(page.locator(".messagelist .success")).to_have_text("1 run will be tried again.")
    expect(page.locator(".mq-why .mq-badge")).to_have_text("Ready")
    assert runs.status(run.pk) == "READY"
    page.click(".object-tools >> text=Cancel")
    page.click("input[type=submit][value=Cancel]")
    expect(page.locator(".messagelist .success")).to_have_text("1 run was cancelled.")
    assert runs.status(run.pk) == "CANCELLED"


def test_from_the_warning_above_the_list_to_another_launch(page: Page) -> None:
    circuit = rows.hold_back(rows.enqueue())
    page.goto(reverse("admin:machinequeue_taskrun_changelist"))
    page.click(".mq-alarms >> text=Machines do not check in")
    expect(page.locator(".field-reason_text pre")).to_contain_text("SECRET_KEY is missing")
    page.click(".object-tools >> text=Try again now")
    expect(page.locator("h1")).to_have_text("Try to launch again now?")
    page.click("input[type=submit][value='Try again now']")
    told = "1 launch is tried again as soon as a run waits for it."
    expect(page.locator(".messagelist .success")).to_have_text(told)
    circuit.refresh_from_db()
    assert circuit.next_at <= runs.database_now()


@pytest.mark.parametrize("width", [1360, 480])
def test_a_schedule_is_added_run_and_paused(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(reverse("admin:machinequeue_schedule_add"))
    page.fill("#id_name", "nightly figures")
    page.select_option("#id_task", tasks.add.module_path)
    page.fill("#id_cron", "30 2 * * *")
    page.select_option("#id_timezone", "Asia/Tokyo")
    page.fill("#id_args", "[]")
    page.click("input[name=_continue]")
    expect(page.locator(".field-args .errorlist")).to_contain_text("missing a required argument: 'a'")
    page.fill("#id_args", "[1]")
    page.click("input[name=_continue]")
    expect(page.locator(".messagelist .success")).to_contain_text("nightly figures")
    expect(page.locator(".mq-upcoming li")).to_have_count(5)
    expect(page.locator(".mq-upcoming li").first).to_contain_text("02:30:00 JST")
    page.click(".object-tools >> text=Run now")
    page.click("input[type=submit][value='Run now']")
    expect(page.locator(".messagelist .success")).to_have_text("1 run is enqueued.")
    expect(page.locator("section[aria-labelledby=mq-ticks]")).to_contain_text("asked for by hand")
    page.click(".object-tools >> text=Pause")
    page.click("input[type=submit][value='Pause']")
    expect(page.locator(".mq-why .mq-badge").first).to_have_text("Paused")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(reverse("admin:machinequeue_schedule_changelist"))
    expect(page.locator("#result_list")).to_contain_text("nightly figures")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_actions_of_the_list(page: Page) -> None:
    made = [rows.enqueue() for _ in range(2)]
    page.goto(reverse("admin:machinequeue_taskrun_changelist"))
    page.check("#action-toggle")
    page.select_option("select[name=action]", "cancel_runs")
    page.click("button[name=index]")
    expect(page.locator(".messagelist .success")).to_have_text("2 runs were cancelled.")
    assert {runs.status(run.pk) for run in made} == {"CANCELLED"}


def test_the_page_of_a_running_run_follows_it(page: Page) -> None:
    held = rows.start(rows.enqueue(max_attempts=1))
    page.goto(_page_of(held.run))
    expect(page.locator(".mq-why .mq-badge")).to_have_text("Running")
    claims.heartbeat(held.claim, lease_seconds=60, pid=1, progress={"current": 1, "total": 4, "message": "reading"})
    claims.add_output(held.claim, "one line\n", 0)
    expect(page.locator("progress")).to_have_text("25%", timeout=WAIT)
    expect(page.locator("#mq-output")).to_contain_text("one line", timeout=WAIT)
    rows.fail(held)
    expect(page.locator(".mq-why .mq-badge")).to_have_text("Failed", timeout=WAIT)
    expect(page.locator(".object-tools")).to_contain_text("Retry", ignore_case=True)
    expect(page.locator("[data-mq-live]")).to_have_count(0)


def test_a_paused_refresh_asks_nothing(page: Page) -> None:
    held = rows.start(rows.enqueue())
    page.add_init_script("asked = 0; ((real) => { fetch = (...all) => { asked += 1; return real(...all); }; })(fetch);")
    page.clock.install()
    page.goto(_page_of(held.run))
    page.click("text=Pause refresh")
    before = page.evaluate("asked")
    rows.succeed(held)
    page.clock.run_for(60_000)
    assert page.evaluate("asked") == before
    expect(page.locator(".mq-why .mq-badge")).to_have_text("Running")
    page.click("text=Resume refresh")
    page.clock.run_for(2_000)
    expect(page.locator(".mq-why .mq-badge")).to_have_text("Successful", timeout=WAIT)
    assert page.evaluate("asked") > before
