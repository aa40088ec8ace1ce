"""What a dispatcher makes of many wake-ups at once."""

import threading
from typing import Any

from machinequeue.dispatch.launch import Launcher
from machinequeue.dispatch.service import Dispatcher
from tests.waiting import until


class Counting(Dispatcher):
    """Notes what it was asked instead of launching."""

    def consider(self, backend: str, queue: str) -> None:
        asked.append((queue, threading.current_thread().name))


asked: list[tuple[str, str]] = []


def test_a_burst_is_answered_at_once_and_once_more_when_it_has_gone_on() -> None:
    asked.clear()
    client: Any = None
    dispatcher = Counting(Launcher(client), reconcile=lambda launcher: None)
    for _ in range(500):
        dispatcher.woken("default", "busy")
    assert [queue for queue, _ in asked][:1] == ["busy"], "the first needs no patience"
    dispatcher.woken("default", "other")
    assert asked[-1][0] == "other", "a busy queue delays no other"
    until(lambda: [queue for queue, _ in asked].count("busy") >= 2, 60)
    assert len(asked) <= 10, "500 wake-ups are few questions"
