"""What counts as idle, without a server: requests until their last byte, and what other workers do."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from machinequeue.serverless import idle
from tests.waiting import until


@pytest.fixture
def clocks(tmp_path: Path) -> Iterator[list[idle.Clock]]:
    """Those of two workers of one server."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(idle.Clock(tmp_path / "server"))) for _ in range(2)]


def test_a_request_in_progress_in_any_worker_keeps_all_awake(clocks: list[idle.Clock]) -> None:
    clocks[1].begin()
    clocks[1].begin()
    clocks[1].end()
    assert [each.idle_seconds() for each in clocks] == [0.0, 0.0]
    clocks[1].end()
    for each in clocks:
        until(lambda each=each: each.idle_seconds() > 0, 60)  # type: ignore[misc]
    assert [each.is_first() for each in clocks] == [True, False]


def test_a_response_is_in_progress_until_it_is_closed(clocks: list[idle.Clock]) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return [b"first", b"last"]

    clock = clocks[0]
    watcher: Any = SimpleNamespace(clock=lambda: clock)
    body: Any = idle._wsgi(application, watcher)({}, None)
    assert list(body) == [b"first", b"last"]
    assert clock.idle_seconds() == 0.0
    body.close()
    body.close()
    until(lambda: clock.idle_seconds() > 0, 60)


def test_an_application_that_raises_is_in_progress_no_more(clocks: list[idle.Clock]) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ValueError

    clock = clocks[0]
    watcher: Any = SimpleNamespace(clock=lambda: clock)
    with pytest.raises(ValueError):  # noqa: PT011 - its own
        idle._wsgi(application, watcher)({}, None)
    until(lambda: clock.idle_seconds() > 0, 60)
