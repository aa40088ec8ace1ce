"""Tasks on real machines: what they return, how they fail, and what ends them."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from machinequeue.models import Attempt, Machine, OutputChunk, TaskRun
from machinequeue.records import runs
from tests.waiting import until
from tests.workshop import broken, tasks
from tests.world import TOKEN, World


def attempt_of(result: Any) -> Attempt:
    return Attempt.objects.filter(run_id=result.id).order_by("-epoch")[0]


def started(gate: Path) -> list[int]:
    """The pids of the task processes that reached the gate."""
    return [int(mark.name.split(".")[-2]) for mark in gate.parent.glob(f"{gate.name}.*.started")]


# What goes well -----------------------------------------------------------------------------------------------------


def test_tasks_succeed_on_a_machine_in_processes_of_their_own(shop: World) -> None:
    results = [tasks.whoami.enqueue() for _ in range(3)]
    shop.finish(*results)
    here = {os.getpid(), *(each.popen.pid for each in shop.processes), shop.emulator.pid}
    pids = {result.return_value["pid"] for result in results}
    assert len(pids) == 3, "a process forked per run"
    assert not pids & here
    for result in results:
        assert result.return_value["machine"] == result.worker_ids[0]
        assert result.errors == []
        [attempt] = result.history
        assert attempt["pid"] == result.return_value["pid"]
        assert attempt["stages"].keys() >= {"start", "prepare", "call"}
        assert attempt["peak_memory_mb"] > 1
        assert attempt["seconds"] > 0


def test_an_async_task_and_every_kind_of_value(shop: World) -> None:
    value = {"é\U0001f600": [1, 2.5, None, True, {"deep": ["\x01"]}], "empty": {}}
    doubled, echoed = tasks.doubled.enqueue(21), tasks.anything.enqueue(value, 2, k=[])
    nothing, much = tasks.add.using(priority=3).enqueue(-1, 1), tasks.anything.enqueue("x" * 1_000_000)
    shop.finish(doubled, echoed, nothing, much)
    assert doubled.return_value == 42
    assert echoed.return_value == [value, [2], {"k": []}]
    assert nothing.return_value == 0
    assert len(much.return_value[0]) == 1_000_000


def test_a_task_sees_its_context_and_says_its_progress(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = tasks.counting.enqueue(str(gate))

    def progress() -> Any:
        result.refresh()
        return result.progress

    assert until(progress, 60, shop.said) == {"current": 1, "total": 3, "message": "one of three"}
    assert str(result.status) == "RUNNING"
    gate.touch()
    shop.finish(result)
    assert result.progress == {"current": 3, "total": 3, "message": "all"}
    assert result.return_value == {"id": result.id, "attempt": 1, "status": "RUNNING", "args": [str(gate)]}


def test_output_is_there_while_the_task_runs(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = tasks.wait_for.enqueue(str(gate), "grüße from inside")
    until(lambda: "grüße from inside\n" in result.output, 60, shop.said)
    assert OutputChunk.objects.filter(attempt__run_id=result.id).count() == 1
    machine = Machine.objects.get(pk=attempt_of(result).machine_id)
    assert "grüße from inside" in shop.emulator.output(machine.fly_id), "it reaches the machine's own log too"
    gate.touch()
    shop.finish(result)


def test_much_output_is_bounded_and_what_is_dropped_is_said(shop: World) -> None:
    result = tasks.print_much.enqueue(2000)
    shop.finish(result)
    output = result.output
    assert "line 0 x" in output
    assert "line 1999 x" in output
    assert "bytes dropped" in output
    assert len(output) < 2000 * 1000 / 4


def test_a_task_enqueues_a_task_without_any_wake_up(shop: World) -> None:
    outer = tasks.enqueue_another.enqueue(20, 3)
    shop.finish(outer)
    inner = tasks.add.get_result(outer.return_value)
    shop.finish(inner)
    assert inner.return_value == 23


def test_a_task_that_waits_for_another_is_refused(shop: World) -> None:
    result = tasks.wait_for_another.enqueue()
    shop.finish(result)
    assert result.errors[0].exception_class_path == "machinequeue.errors.WaitInsideTask"


def test_isolation_machine_gives_every_run_a_machine_of_its_own(shop: World) -> None:
    results = [tasks.alone.enqueue() for _ in range(3)]
    shop.finish(*results)
    names = {result.return_value for result in results}
    assert len(names) == 3
    assert all(name.startswith("mq-alone-") for name in names)


def test_a_warm_machine_waits_for_the_next_run(shop: World) -> None:
    first = tasks.warm.enqueue()
    shop.finish(first)
    machine = Machine.objects.get(name=first.return_value["machine"])
    until(lambda: Machine.objects.get(pk=machine.pk).status == "idle", 60, shop.said)
    second = tasks.warm.enqueue()
    shop.finish(second)
    assert second.return_value["machine"] == first.return_value["machine"]
    assert second.return_value["pid"] != first.return_value["pid"]
    assert Machine.objects.filter(queue="warm").count() == 1
    with shop.emulator.client() as client:
        client.stop(machine.fly_id)
    until(lambda: Machine.objects.get(pk=machine.pk).status == "gone", 60, shop.said)
    assert Machine.objects.get(pk=machine.pk).exit_event["exit_code"] == 0


# What a machine is --------------------------------------------------------------------------------------------------


def test_a_machine_imports_nothing_that_it_does_not_need(shop: World) -> None:
    result = tasks.modules.enqueue()
    shop.finish(result)
    loaded = set(result.return_value)
    assert "tests.workshop.tasks" in loaded
    unwanted = {"huey", "httpx", "redis", "boto3", "starlette", "uvicorn", "botocore"}
    assert {name for name in loaded if name.partition(".")[0] in unwanted} == set()
    assert {name for name in loaded if name.startswith(("machinequeue.machines", "machinequeue.dispatch"))} == set()
    assert {name for name in loaded if name.endswith(".admin")} <= {"django.contrib.admin"}
    assert {name for name in loaded if name.endswith(".urls") and not name.startswith("django.")} == set()
    assert "machinequeue.checks" not in loaded


def test_a_machine_has_its_secrets_but_not_the_token(shop: World) -> None:
    result = tasks.environment.enqueue()
    shop.finish(result)
    environment = result.return_value
    assert environment["SHOP_SECRET"] == "a secret of the app"
    assert environment["MACHINEQUEUE_MACHINE"].startswith("mq-default-")
    assert environment["FLY_PROCESS_GROUP"] == "machinequeue"
    assert "FLY_API_TOKEN" not in environment
    assert TOKEN not in "".join(environment.values())
    assert "REDIS_URL" not in environment
    said = "".join(each.said for each in shop.processes) + shop.emulator.log_path.read_text()
    assert TOKEN not in said
    assert "a secret of the app" not in said


def test_the_config_of_a_machine_is_what_fly_needs(shop: World) -> None:
    result = tasks.report.enqueue(1)
    shop.finish(result)
    with shop.emulator.client() as client:
        config = client.get(result.worker_ids[0]).config
    assert config["guest"] == {"cpu_kind": "shared", "cpus": 2, "memory_mb": 4096}
    assert (config["auto_destroy"], config["restart"]["policy"]) == (True, "no")
    assert config["dns"]["skip_registration"] is True
    assert config["stop_config"]["signal"] == "SIGTERM"
    assert not any(key.startswith("fly_platform") for key in config["metadata"])
    assert result.history[0]["request_ids"], "Fly support asks for these"


# What fails ---------------------------------------------------------------------------------------------------------


def test_an_exception_ends_in_errors_output_and_the_sentence_why(shop: World) -> None:
    result = tasks.boom.enqueue("no \x1b paper")
    shop.finish(result)
    assert (str(result.status), result.attempts) == ("FAILED", 1)
    [error] = result.errors
    assert error.exception_class is ValueError
    assert "raise ValueError(text)" in error.traceback
    assert "tests/workshop/tasks.py" in error.traceback
    assert "about to fail" in result.output
    assert result.why() == "ValueError: no \x1b paper"
    assert attempt_of(result).diagnosis["category"] == "failed"


def test_retries_with_the_task_s_own_backoff(shop: World, tmp_path: Path) -> None:
    result = tasks.flaky.enqueue(str(tmp_path))
    shop.finish(result)
    assert (result.return_value, result.attempts) == (2, 3)
    assert [each["status"] for each in result.history] == ["failed", "failed", "succeeded"]
    assert [error.exception_class for error in result.errors] == [ConnectionError, ConnectionError]


def test_a_task_may_say_that_no_retry_helps(shop: World) -> None:
    hopeless, picky = tasks.hopeless.enqueue(), tasks.picky.enqueue()
    shop.finish(hopeless, picky)
    assert (hopeless.run_status, hopeless.attempts) == ("FAILED", 1)
    assert (picky.run_status, picky.attempts) == ("FAILED", 1)


@pytest.mark.parametrize(
    ("name", "args", "error", "says"),
    [
        ("leave", (3,), "builtins.SystemExit", "SystemExit: 3"),
        ("leave_at_once", (7,), "machinequeue.errors.RunCrashed", "(exit code 7)"),
        ("leave_at_once", (0,), "machinequeue.errors.RunCrashed", "(exit code 0)"),
        ("segfault", (), "machinequeue.errors.RunCrashed", "(killed by SIGSEGV)"),
        ("killed", (), "machinequeue.errors.RunCrashed", "(killed by SIGKILL)"),
        ("unstorable", (), "builtins.TypeError", "the return value is a set"),
    ],
)
def test_a_task_process_that_ends_badly_takes_only_itself(
    shop: World, name: str, args: tuple[Any, ...], error: str, says: str
) -> None:
    result = getattr(tasks, name).enqueue(*args)
    after = tasks.add.enqueue(1, 1)
    shop.finish(result, after)
    assert str(result.status) == "FAILED"
    assert result.errors[0].exception_class_path == error
    assert says in result.why()
    assert after.return_value == 2
    attempt = attempt_of(result)
    assert attempt.exit_code == {"leave_at_once": args[0] if args else None}.get(name, attempt.exit_code)
    assert attempt.signal == {"segfault": signal.SIGSEGV, "killed": signal.SIGKILL}.get(name)
    if name == "leave_at_once":
        assert "last words" in result.output


def test_a_task_that_its_machine_cannot_import(shop: World) -> None:
    result = broken.unimportable.enqueue()
    removed = tasks.add.enqueue(1)
    TaskRun.objects.filter(pk=removed.id, status="READY").update(task="tests.workshop.tasks.removed")
    shop.finish(result)
    assert result.errors[0].exception_class_path == "machinequeue.errors.TaskNotImportable"
    assert "a package is missing in this image" in result.errors[0].traceback
    assert "cannot be imported on the machine" in result.why()
    assert "Deploy an image" in attempt_of(result).diagnosis["remedy"]


@pytest.mark.parametrize("name", ["too_slow", "too_slow_async"])
def test_over_its_timeout_a_task_is_interrupted(shop: World, name: str) -> None:
    result = getattr(tasks, name).enqueue()
    shop.finish(result)
    [error] = result.errors
    assert error.exception_class_path == "machinequeue.errors.RunTimedOut"
    assert "TaskTimeout" in error.traceback
    assert result.why() == "longer than its timeout of 0.5 s"
    attempt = attempt_of(result)
    assert attempt.status == "timed out"
    assert 0.5 <= (attempt.seconds or 0) < 60


def test_a_timeout_is_final_unless_the_task_wants_it_tried_again(shop: World, tmp_path: Path) -> None:
    result = tasks.slow_at_first.enqueue(str(tmp_path / "been here"))
    shop.finish(result)
    assert result.return_value == "in time"
    assert [each["status"] for each in result.history] == ["timed out", "succeeded"]


@pytest.mark.slow
def test_a_task_that_ignores_its_timeout_is_killed_with_all_that_it_started(shop: World, tmp_path: Path) -> None:
    result = tasks.stubborn.enqueue(str(tmp_path))
    shop.finish(result, seconds=40)
    pids = [int(mark.name) for mark in tmp_path.iterdir()]
    assert len(pids) == 2
    assert not [pid for pid in pids if psutil.pid_exists(pid)], "killed before the outcome is written"
    assert "did not end within 10 s and was killed" in result.why()
    assert attempt_of(result).signal == signal.SIGKILL


def test_cancel_of_a_run_that_runs(shop: World, tmp_path: Path) -> None:
    result = tasks.wait_for.using(max_attempts=5).enqueue(str(tmp_path / "never"))
    [pid] = until(lambda: started(tmp_path / "never"), 60, shop.said)
    assert result.cancel()
    shop.finish(result)
    assert (result.run_status, result.attempts) == ("CANCELLED", 1)
    assert result.errors[0].exception_class_path == "machinequeue.errors.RunCancelled"
    assert "TaskCancelled" in result.errors[0].traceback
    until(lambda: not psutil.pid_exists(pid), 60)


def test_cancel_of_a_run_that_waits(shop: World, tmp_path: Path) -> None:
    blocking = tasks.wait_for.using(queue_name="narrow").enqueue(str(tmp_path / "gate"))
    until(lambda: started(tmp_path / "gate"), 60, shop.said)
    waiting = tasks.add.using(queue_name="narrow").enqueue(1)
    until(lambda: "1 of 1 machines busy in queue narrow" in waiting.why(), 60, waiting.why)
    assert waiting.cancel()
    waiting.refresh()
    assert waiting.run_status == "CANCELLED"
    (tmp_path / "gate").touch()
    shop.finish(blocking)
    assert runs.attempts(TaskRun.objects.get(pk=waiting.id).pk) == []
