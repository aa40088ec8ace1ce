"""A deployed site in each failure, and that the transcripts of docs/how-to/monitor.md are what it says."""

import signal

import pytest

from tests.health import scenes
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FAILURES = {
    "healthy": ("ok", "200", set()),
    "redis": ("degraded", "200", {"wakeups"}),
    "dispatcher": ("failure", "503", {"dispatcher", "backlog", "schedules"}),
    "fly": ("failure", "503", {"backlog", "circuits", "machines"}),
    "api": ("degraded", "200", {"api"}),
    "backup": ("failure", "503", {"api", "backup", "drill"}),
    "database": (
        "failure",
        "503",
        {"database", "dispatcher", "backlog", "schedules", "circuits", "api", "machines", "backup", "drill"},
    ),
}


def statuses(transcript: scenes.Transcript) -> list[str]:
    return [line for line in transcript.lines if line.isdigit()]


def test_every_failure_is_told_and_the_page_shows_it() -> None:
    with scenes.site() as site:
        played = scenes.play(site)
    for name, (standing, status, named) in FAILURES.items():
        lines = played[name].lines
        begin = next(number for number, line in enumerate(lines) if "format=text" in line)
        assert (lines[begin + 1], lines[-1]) == (standing, status), name
        assert {line.split()[1] for line in lines if line.startswith(("warning", "failure "))} == named, name
    for name in ("redis", "dispatcher", "fly"):  # what keeps runs from starting takes no web process out of service
        assert statuses(played[name])[:2] == ["200", "200"], name
    assert statuses(played["database"]) == ["200", "503", "503"]
    kept = scenes.kept()
    assert set(kept) == set(played)
    for name, transcript in played.items():
        assert scenes.shape(str(transcript)) == scenes.shape(kept[name]), f"{name}: python -m tests.health.scenes"


def test_asgi_and_a_database_that_accepts_and_says_nothing() -> None:
    with scenes.site(scenes.ASGI) as site:
        process = site.postgres._process
        assert process is not None
        assert site.curl("/ht/ready/").endswith("200")
        process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: site.curl("/ht/ready/").endswith("503"), scenes.WAIT, site.said)
            assert site.curl("/ht/live/").endswith("200")
            told = site.text()
            assert told.endswith("503")
            assert "failure  database" in told
            assert "ok       wakeups" in told
        finally:
            process.send_signal(signal.SIGCONT)
        until(lambda: site.curl("/ht/ready/").endswith("200"), scenes.WAIT, site.said)
