"""What is made of an exec and of the look at its machine afterwards, at times that no test could wait for."""

from types import SimpleNamespace
from typing import Any

import pytest

from machinequeue.containers import driver
from machinequeue.machines.errors import Unreachable
from machinequeue.machines.schema import ExecResult

CLAIM = SimpleNamespace(
    timeout=10.0, kwargs={"cmd": ["true"], "files": {}, "env": {}, "stdin": ""}, run_id="run", epoch=1
)


def _executed(monkeypatch: pytest.MonkeyPatch, times: list[float], exec_: Any, is_same: Any) -> driver.Execution:
    clock = iter(times)
    monkeypatch.setattr(driver.time, "monotonic", lambda: next(clock))
    drive: Any = SimpleNamespace(
        client=SimpleNamespace(exec=exec_, get=_unreachable),
        row=SimpleNamespace(fly_id="m", name="mq-1"),
        is_same=is_same,
    )
    claim: Any = CLAIM
    execution = driver.Execution(drive, claim)
    execution._work()
    monkeypatch.undo()
    return execution


def _unreachable(*args: Any, **options: Any) -> Any:
    raise Unreachable("no answer")


def test_a_command_that_ended_did_not_take_too_long_whatever_came_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([ExecResult("", "", 0), ExecResult("done", "", 0)])
    execution = _executed(monkeypatch, [0.0, 0.0, 2.0, 32.0], lambda *_, **__: next(answers), _unreachable)
    assert execution.call.seconds == 2.0
    failure = execution._failure(None)
    assert failure is not None
    assert failure.status == "lost"


def test_an_answer_that_never_came_took_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([ExecResult("", "", 0)])

    def exec_(*args: Any, **options: Any) -> ExecResult:
        return next(answers, None) or _unreachable()

    execution = _executed(monkeypatch, [0.0, 0.0, 10.0], exec_, lambda: True)
    failure = execution._failure(None)
    assert failure is not None
    assert failure.status == "timed out"
