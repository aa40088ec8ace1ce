"""Bounded asking: one that hangs is said to hang, and keeps nobody else from being heard."""

import threading
from collections.abc import Iterator

import pytest

from machinequeue.health import asking
from machinequeue.health.asking import Question, ask, ask_all
from tests.waiting import until


@pytest.fixture
def door() -> Iterator[threading.Event]:
    """What hangs waits for it; it is open when the test ends."""
    opened = threading.Event()
    yield opened
    opened.set()
    until(lambda: not asking._hanging)


def test_answers_come_by_name_and_in_order() -> None:
    heard = ask_all({str(number): Question(lambda number=number: number**2, 30) for number in range(20)})  # type: ignore[misc]
    assert list(heard) == [str(number) for number in range(20)]
    assert [each.answer for each in heard.values()] == [number**2 for number in range(20)]


def test_nothing_asked_is_nothing_heard() -> None:
    assert ask_all({}) == {}


def test_more_hang_than_there_are_threads_and_the_others_are_heard(door: threading.Event) -> None:
    hanging = {f"hangs {number}": Question(lambda: door.wait(60), 0.2) for number in range(asking.AT_ONCE + 1)}
    heard = ask_all({**hanging, "answers": Question(lambda: True, 30)})
    assert heard["answers"].answer is True
    for name in hanging:
        assert heard[name].answer is None
        assert heard[name].error is None
        assert heard[name].seconds >= 0.2


def test_what_hangs_is_not_asked_again_until_it_has_answered(door: threading.Event) -> None:
    asked = []

    def question() -> str:
        asked.append(1)
        door.wait(60)
        return "at last"

    for _ in range(3):
        assert ask("slow", question, 0.1).answer is None
    assert len(asked) == 1
    door.set()
    assert until(lambda: ask("slow", question, 60).answer) == "at last"
    assert len(asked) == 2


def test_what_hangs_for_long_is_asked_again_ever_more_seldom(
    door: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def question() -> str:
        asked.append(1)
        if len(asked) < 3:
            door.wait(60)
        return "the server is back"

    assert ask("stuck", question, 0.1).answer is None
    monkeypatch.setattr(asking, "AGAIN_SECONDS", 0.0)
    assert ask("stuck", question, 0.1).answer is None
    monkeypatch.setattr(asking, "AGAIN_SECONDS", 600.0)
    assert ask("stuck", question, 30).answer is None
    assert len(asked) == len(asking._hanging["stuck"]) == 2
    monkeypatch.setattr(asking, "AGAIN_SECONDS", 0.0)
    assert ask("stuck", question, 30).answer == "the server is back"


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_what_is_raised_is_heard(error: BaseException) -> None:
    def question() -> None:
        raise error

    assert ask("raises", question, 30).error is error
