"""Runs whose code is not ours, from the enqueue to the end of their machine."""

import datetime
import secrets
import uuid
from typing import Any

import pytest
from django.utils import timezone

from machinequeue import container_task, enqueue_many
from machinequeue.compat import InvalidTask
from machinequeue.dispatch.launch import site
from machinequeue.errors import InvalidArguments
from machinequeue.machines.schema import CreateRequest
from machinequeue.models import Machine, TaskRun
from tests.containers.conftest import SANDBOX, running, sandbox
from tests.waiting import until
from tests.workshop import containers, tasks
from tests.world import APP, TOKEN, World


def test_a_run_gives_back_what_its_command_said(shop: World) -> None:
    code = "import sys, pkg.part; print(sys.argv[1], pkg.part.X, sys.stdin.read()); print('e', file=sys.stderr)"
    result = containers.run_python.enqueue(
        ["python", "main.py", "two words"], files={"main.py": code, "pkg/part.py": b"X = 7"}, stdin="given \u00e9\n"
    )
    shop.finish(result)
    value = result.return_value
    assert set(value) == {"exit_code", "stdout", "stderr", "truncated", "seconds"}
    assert (value["exit_code"], value["stdout"], value["stderr"]) == (0, "two words 7 given \u00e9\n\n", "e\n")
    assert not value["truncated"]
    assert value["seconds"] > 0
    [attempt] = result.history
    assert (attempt["status"], attempt["seconds"] > 0) == ("succeeded", True)
    assert attempt["machine"].startswith("mq-containers-")
    assert "two words 7" in result.output
    assert result.worker_ids == [attempt["machine_id"]]


def test_the_environment_is_what_the_run_says(shop: World) -> None:
    result = containers.run_python.enqueue(["sh", "-c", "echo $GREETING; pwd"], env={"GREETING": "it's $HOME"})
    shop.finish(result)
    assert result.return_value["stdout"] == "it's $HOME\n/tmp/work\n"


def test_an_exit_code_is_a_result(shop: World) -> None:
    result = containers.run_python.enqueue(["sh", "-c", "echo so >&2; exit 3"])
    shop.finish(result)
    assert result.run_status == "SUCCESSFUL"
    assert result.return_value["exit_code"] == 3


def test_a_command_that_is_missing_is_a_result(shop: World) -> None:
    result = containers.run_python.enqueue(["no-such-program"])
    shop.finish(result)
    assert result.return_value["exit_code"] == 127
    assert "not found" in result.return_value["stderr"]


def test_an_exit_code_may_be_a_failure(shop: World) -> None:
    # No database that we know keeps a NUL in a text.
    result = containers.checked.enqueue(["sh", "-c", "printf 'wrong\\0\\n' >&2; exit 3"])
    shop.finish(result, seconds=90)
    assert result.run_status == "FAILED"
    assert [each["status"] for each in result.history] == ["failed", "failed"]
    assert "exit code 3: wrong" in result.why()
    assert "\0" not in result.why()
    assert "all 2 attempts are used" in result.why()


def test_many_at_once_on_few_machines(shop: World) -> None:
    calls = [((["sh", "-c", f"echo {number}"],), {}) for number in range(6)]
    results = enqueue_many(containers.run_python, calls)
    shop.finish(*results, seconds=120)
    assert [each.return_value["stdout"] for each in results] == [f"{number}\n" for number in range(6)]
    assert all(len(each.history) == 1 for each in results)


def test_the_machines_are_in_an_app_of_their_own_with_nothing_of_ours(shop: World) -> None:
    result = containers.patient.enqueue(["sleep", "100"])
    row = running(shop, result)
    with sandbox(shop) as client:
        config = dict(client.get(row.fly_id).config or {})
    assert row.app == SANDBOX
    assert not config.get("env")
    assert not config.get("services")
    assert not config.get("processes")
    assert config["auto_destroy"]
    assert config["restart"] == {"policy": "no"}
    assert config["image"] == "python:3.13-slim"
    assert config["metadata"]["mq_kind"] == "container"
    assert TOKEN not in str(config)
    result.cancel()
    shop.finish(result, seconds=60)


def test_a_run_is_cancelled_while_it_runs(shop: World) -> None:
    result = containers.patient.enqueue(["sleep", "100"])
    row = running(shop, result)
    result.cancel()
    shop.finish(result, seconds=60)
    assert result.run_status == "CANCELLED"
    with sandbox(shop) as client:
        until(lambda: client.get(row.fly_id).state == "destroyed", 60, shop.said)


def test_a_machine_that_is_lost_means_another_attempt(shop: World) -> None:
    result = containers.patient.enqueue(["sleep", "100"])
    first = running(shop, result)
    with sandbox(shop) as client:
        client.destroy(first.fly_id, force=True)
    second = running(shop, result, epoch=2)
    assert second.pk != first.pk
    assert result.history[0]["status"] == "lost"
    result.cancel()
    shop.finish(result, seconds=60)


def test_a_machine_that_is_started_again_means_another_attempt(shop: World) -> None:
    result = containers.patient.enqueue(["sleep", "100"])
    first = running(shop, result)
    with sandbox(shop) as client:
        client.restart(first.fly_id, "SIGKILL", "1s")
    second = running(shop, result, epoch=2)
    assert second.pk != first.pk
    assert result.history[0]["status"] == "lost"
    result.cancel()
    shop.finish(result, seconds=60)


def test_an_exec_that_the_api_gives_up_means_another_attempt(shop: World) -> None:
    with shop.emulator.faults.add("answer", action="exec", status=408, text="deadline_exceeded", times=1):
        result = containers.run_python.enqueue(["sh", "-c", "echo so"])
        shop.finish(result, seconds=60)
    assert [each["status"] for each in result.history] == ["lost", "succeeded"]
    assert "deadline_exceeded" in result.history[0]["diagnosis"]["sentence"]


def test_a_leaked_machine_is_destroyed(shop: World) -> None:
    result = containers.run_python.enqueue(["true"])
    shop.finish(result)
    name = f"mq-containers-{secrets.token_hex(6)}"
    metadata = {"mq_machine": name, "mq_site": site(), "mq_kind": "container"}
    config = {
        "image": "python:3.13-slim",
        "init": {"exec": ["sleep", "600"]},
        "auto_destroy": True,
        "restart": {"policy": "no"},
        "metadata": metadata,
    }
    with sandbox(shop) as client:
        made = client.create(CreateRequest(name=name, region=None, config=config))
        # Without rows to look after, Fly is asked for leaked machines once a minute.
        until(lambda: client.get(made.id).state == "destroyed", 100, shop.said)


def test_runs_of_ours_and_others_share_a_queue_but_no_machine(shop: World) -> None:
    ours = tasks.add.using(queue_name="containers").enqueue(2)
    others = containers.run_python.enqueue(["sh", "-c", "echo other"])
    shop.finish(ours, others, seconds=60)
    assert others.return_value["stdout"] == "other\n"
    both = [TaskRun.objects.get(pk=uuid.UUID(each.id)) for each in (ours, others)]
    assert both[0].spec_key != both[1].spec_key
    assert {Machine.objects.get(name=each.history[0]["machine"]).app for each in (ours, others)} == {APP, SANDBOX}


def test_an_unknown_image_says_so(shop: World) -> None:
    result = containers.unknown.enqueue(["true"])
    until(lambda: "nowhere:1" in result.why(), 60, result.why)
    assert "MANIFEST_UNKNOWN" in result.why()
    result.cancel()


# What is refused at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cmd": "python main.py"}, "list of strings"),
        ({"cmd": []}, "list of strings"),
        ({"cmd": ["echo", 1]}, "list of strings"),
        ({"cmd": ["x" * 40_000]}, "cmd has more than"),
        ({"cmd": ["true"], "files": {"x": 1}}, "string or bytes"),
        ({"cmd": ["true"], "files": {"x": "y" * 2_000_000}}, "is the most"),
        ({"cmd": ["true"], "env": {"A B": "x"}}, "variable"),
        ({"cmd": ["true"], "env": {"A": 1}}, "variable"),
        ({"cmd": ["true"], "stdin": b"x"}, "stdin must be a string"),
        ({"cmd": ["a\0b"]}, "NUL"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArguments, match=words):
        containers.run_python.enqueue(**arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": "No Image"}, "must be a reference"),
        ({"image": "python:3.13", "timeout": 4000}, "at most 3600"),
        ({"image": "python:3.13", "memory_mb": 100}, "memory_mb"),
        ({"image": "python:3.13", "queue_name": "conainers"}, "did you mean|Did you mean"),
    ],
)
def test_what_cannot_work_is_refused_at_import(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidTask, match=words):
        container_task(**options)


@pytest.mark.parametrize("option", [{"image": "same"}, {"isolation": "process"}, {"memory": 1}])
def test_options_that_a_container_task_has_not(option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="no option"):
        containers.run_python.using(**option)


def test_a_task_that_no_variable_holds_says_so() -> None:
    with pytest.raises(InvalidTask, match="is not a variable"):
        container_task(image="python:3.13").enqueue(["true"])


@pytest.mark.django_db(transaction=True)
def test_a_run_waits_for_its_time_like_others() -> None:
    later = containers.run_python.using(run_after=datetime.timedelta(hours=1)).enqueue(["true"])
    row = TaskRun.objects.get(pk=uuid.UUID(later.id))
    assert row.run_after > timezone.now() + datetime.timedelta(minutes=50)
    assert row.task == "tests.workshop.containers.run_python"
    assert containers.run_python.get_result(later.id).id == later.id
    assert later.cancel()
