"""Management commands on machines of their own: declared as tasks, and followed live by `mq_exec`."""

import os
import pty
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command, get_commands

from machinequeue import InvalidArguments, command_task
from machinequeue.backend import task
from machinequeue.compat import InvalidTask
from machinequeue.contrib import manage
from machinequeue.models import Attempt, OutputPiece, TaskRun
from machinequeue.records import streams
from machinequeue.testing import run_tasks
from tests.integration.execs import ended, mq_exec
from tests.waiting import until
from tests.workshop.management.commands.speak import Command as Speak
from tests.world import WORKSHOP, World

EVERY_BYTE = bytes(range(256))


# The settings of this process do not have the workshop as an app; those of its machines do.
get_commands()["speak"] = Speak()  # type: ignore[assignment]
tasks = import_module("tests.workshop.spoken")


def started(gate: Path) -> list[int]:
    return [int(mark.name.split(".")[-2]) for mark in gate.parent.glob(f"{gate.name}.*.started")]


# As tasks -----------------------------------------------------------------------------------------------------------


def test_a_command_runs_as_a_task_of_the_size_that_it_was_declared_with(shop: World) -> None:
    result = tasks.spoken.enqueue("one", "two", aside="aside\n")
    shop.finish(result)
    assert (result.status, result.return_value) == ("SUCCESSFUL", 0), shop.said()
    assert {"one", "two", "aside"} <= {*result.output.replace("aside", " aside ").split()}, "stderr comes when it comes"
    run = TaskRun.objects.get(pk=result.id)
    assert run.task == "tests.workshop.spoken.spoken"
    assert (run.spec["memory_mb"], run.spec["isolation"], run.timeout) == (1024, "machine", 60)
    assert Attempt.objects.get(run=run).exit_code == 0


@pytest.mark.parametrize(
    ("options", "error", "code", "says"),
    [
        ({"error": "no paper", "code": 7}, "django.core.management.base.CommandError", 7, "CommandError: no paper"),
        ({"leave": "exit", "code": 3}, "machinequeue.errors.CommandFailed", 3, "speak ended with exit code 3"),
        ({"leave": "at once", "code": 4}, "machinequeue.errors.CommandFailed", 4, "speak ended with exit code 4"),
        ({"leave": "raise", "error": "lost"}, "builtins.KeyError", None, "KeyError: 'lost'"),
        ({"leave": "die"}, "machinequeue.errors.CommandFailed", 139, "speak was killed by SIGSEGV"),
    ],
)
def test_how_a_command_ends_is_how_its_run_ends(
    shop: World, options: dict[str, Any], error: str, code: int | None, says: str
) -> None:
    result = tasks.spoken.enqueue("before", **options)
    shop.finish(result)
    assert result.status == "FAILED"
    assert "before" in result.output
    attempt = Attempt.objects.get(run=result.id)
    assert (attempt.error, attempt.exit_code) == (error, code)
    assert says in attempt.diagnosis["sentence"]
    if options.get("leave") == "raise":
        assert "speak.py" in attempt.traceback, "where in the command it was raised"


def test_a_command_that_leaves_with_zero_has_succeeded(shop: World) -> None:
    result = tasks.spoken.enqueue("fine", leave="exit", code=0)
    shop.finish(result)
    assert (result.status, result.return_value) == ("SUCCESSFUL", 0)


def test_a_command_is_retried_as_its_declaration_says(shop: World) -> None:
    result = tasks.stubborn.enqueue(error="again")
    shop.finish(result)
    assert [attempt["status"] for attempt in result.history] == ["failed", "failed"]


@pytest.mark.slow
def test_a_command_that_takes_too_long_is_interrupted_as_by_ctrl_c(shop: World, tmp_path: Path) -> None:
    result = tasks.spoken.using(timeout=20).enqueue("begun", gate=str(tmp_path / "gate"))
    shop.finish(result, seconds=120)
    assert Attempt.objects.get(run=result.id).status == "timed out"
    assert "begun" in result.output
    assert "tidied up" in result.output


@pytest.mark.django_db
def test_a_command_runs_in_the_process_of_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    call = manage.check.enqueue("--fail-level", "CRITICAL", verbosity=1)
    wrong = manage.loaddata.enqueue("no-such-fixture")
    assert run_tasks() == 2
    call.refresh()
    wrong.refresh()
    assert (call.status, call.return_value) == ("SUCCESSFUL", 0)
    assert wrong.errors[0].exception_class_path == "django.core.management.base.CommandError"
    assert "System check" in capsys.readouterr().out


# Refused at once ----------------------------------------------------------------------------------------------------


def test_an_unknown_command_is_refused_where_it_is_declared() -> None:
    with pytest.raises(
        InvalidTask, match=r"There is no management command 'clearsesions'\. Did you mean 'clearsessions'"
    ):
        command_task("clearsesions")


@pytest.mark.django_db
def test_an_unknown_command_is_refused_where_it_is_enqueued() -> None:
    with pytest.raises(InvalidTask, match="There is no management command 'clearsesions'"):
        manage.clearsesions.enqueue()


def test_looking_tasks_up_makes_no_more_of_them() -> None:
    """A command that nobody declared was a new task at each look, and each look looked for all of them."""
    assert manage.clearsessions is manage.clearsessions
    known = len(task._known)
    for _ in range(3):
        task.registered()
    assert len(task._known) == known


@pytest.mark.django_db
def test_a_command_that_machines_could_not_find_is_refused() -> None:
    hidden = command_task("clearsessions")
    with pytest.raises(InvalidTask, match=r"must be assigned to a name of module tests.integration.test_commands"):
        hidden.enqueue()


def test_options_that_no_command_has_are_refused() -> None:
    with pytest.raises(TypeError, match="no option 'takes_context'"):
        command_task("clearsessions", takes_context=True)
    with pytest.raises(TypeError, match="Did you mean 'memory_mb'"):
        command_task("clearsessions", memory_md=1024)


@pytest.mark.django_db
@pytest.mark.parametrize("word", [None, True, ["auth"], b"auth"])
def test_words_that_no_command_line_has_are_refused(word: Any) -> None:
    with pytest.raises(InvalidArguments, match=r"args\[1\] is .*; words of a command line are text or numbers"):
        manage.dumpdata.enqueue("auth", word)
    assert not TaskRun.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Which command"),
        (["--", "clearsesions"], "Did you mean 'clearsessions'"),
        (["--", "dumpdata", "--indnt", "2"], "unrecognized arguments: --indnt"),
        (["--memory", "3000", "--", "check"], "Fits: --cpu-kind shared --cpus 2 --memory 3072"),
        (["--memory", "256", "--cpus", "4", "--", "check"], "Fits: --cpu-kind shared --cpus 4 --memory 1024"),
        (["--cpus", "3", "--", "check"], "cpus=3 is no size of cpu_kind 'shared'"),
        (["--queue", "reprots", "--", "check"], "Did you mean 'reports'"),
        (["--timeout", "99999", "--", "check"], "Raise machine_life or lower timeout"),
        (["--backend", "other", "--", "check"], "No entry of TASKS called 'other' uses machinequeue. Known: default"),
        (["--attach", "nonsense"], "'nonsense' is not the id of a run"),
        (["--attach", "01900000-0000-7000-8000-000000000000"], "There is no run"),
        (["--attach", "01900000-0000-7000-8000-000000000000", "--", "check"], "takes no command"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(words: list[str], says: str) -> None:
    with pytest.raises(CommandError, match=says):
        call_command("mq_exec", *words)
    assert not TaskRun.objects.exists()


# mq_exec ------------------------------------------------------------------------------------------------------------


def test_exec_shows_the_machine_and_both_streams_apart(shop: World, tmp_path: Path) -> None:
    code, out, err = ended(shop, tmp_path, "--memory", "3072", "--", "speak", "one", "two", "--aside", "said aside\n")
    assert (code, out) == (0, b"one two"), err
    assert "said aside\n" in err
    assert re.search("attempt 1 (runs|ran) on machine mq-default-", err), err
    assert "successful" in err
    run = TaskRun.objects.latest("enqueued_at")
    assert (run.task, run.args) == ("machinequeue.contrib.manage.speak", ["one", "two", "--aside", "said aside\n"])
    assert (run.spec["memory_mb"], run.spec["cpus"]) == (3072, 2)


def test_exec_passes_on_every_byte_exactly(shop: World, tmp_path: Path) -> None:
    code, out, err = ended(shop, tmp_path, "--", "speak", "--bytes", "1000000")
    assert code == 0, err
    assert out == (EVERY_BYTE * 3907)[:1_000_000]
    assert "NOT COMPLETE" not in err


def test_exec_says_when_output_was_dropped(shop: World, tmp_path: Path) -> None:
    code, out, err = ended(shop, tmp_path, "--", "speak", "--bytes", "16780000")
    assert code == 74, err
    assert out == EVERY_BYTE * 65_536, "what is kept by default"
    assert "OUTPUT IS NOT COMPLETE: 2784 bytes of stdout were dropped" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--error", "no paper", "--code", "7"], 7, "CommandError: no paper"),
        (["--leave", "exit", "--code", "3"], 3, "exit code 3"),
        (["--leave", "die"], 139, "killed by SIGSEGV"),
    ],
)
def test_exec_ends_as_the_command_does(shop: World, tmp_path: Path, words: list[str], code: int, says: str) -> None:
    got, _, err = ended(shop, tmp_path, "--", "speak", *words)
    assert got == code, err
    assert says in err


def test_exec_shows_output_while_the_command_runs(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with mq_exec(shop, tmp_path, "--follow", "--", "speak", "one", "two", "--gate", str(gate)) as running:
        until(lambda: running.out == b"one", 60, lambda: running.err + shop.said())
        assert running.popen.poll() is None
        assert running.run().status == "RUNNING"
        gate.touch()
        assert running.ends() == 0, running.err
        assert running.out == b"one two"


def test_ctrl_c_cancels_the_run_and_waits_for_its_end(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with mq_exec(shop, tmp_path, "--", "speak", "one", "--gate", str(gate)) as running:
        until(lambda: running.out == b"one", 60, lambda: running.err + shop.said())
        running.popen.send_signal(signal.SIGINT)
        assert running.ends() == 121, running.err
        assert running.run().status == "CANCELLED"
        assert running.out == b"one tidied up"
        assert "asked to stop" in running.err


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_and_the_run_can_be_followed_again(shop: World, tmp_path: Path) -> None:
    gate, again = tmp_path / "gate", tmp_path / "again"
    again.mkdir()
    with mq_exec(shop, tmp_path, "--", "speak", "one", "two", "--deaf", "--gate", str(gate)) as running:
        until(lambda: running.out == b"one", 60, lambda: running.err + shop.said())
        running.popen.send_signal(signal.SIGINT)
        until(lambda: "Ctrl-C again leaves" in running.err, 60, lambda: running.err)
        running.popen.send_signal(signal.SIGINT)
        assert running.ends() == 130, running.err
        run = running.run()
        assert f"left; run {run.pk} goes on" in running.err
    code, out, err = ended(shop, again, "--attach", str(run.pk))
    assert code == 121, err
    assert out.startswith(b"one")


def test_a_run_that_had_ended_shows_its_output_and_its_machine(shop: World, tmp_path: Path) -> None:
    result = tasks.spoken.enqueue("one", "two")
    shop.finish(result)
    code, out, err = ended(shop, tmp_path, "--attach", result.id)
    assert (code, out) == (0, b"one two"), err
    assert "attempt 1 ran on machine mq-default-" in err


def test_who_is_asked_may_let_the_run_go_on(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    terminal, end = pty.openpty()
    with mq_exec(shop, tmp_path, "--", "speak", "one", "--gate", str(gate), stdin=end) as running:
        os.close(end)
        until(lambda: running.out == b"one", 60, lambda: running.err + shop.said())
        for number, answer in enumerate((b"n\n", b"y\n"), start=1):
            running.popen.send_signal(signal.SIGINT)
            until(lambda n=number: running.err.count("[y/N") == n, 60, lambda: running.err)  # type: ignore[misc]
            assert running.run().cancel_requested_at is None
            os.write(terminal, answer)
            said = "following on" if answer == b"n\n" else "asked to stop"
            until(lambda said=said: said in running.err, 60, lambda: running.err)  # type: ignore[misc]
        until(lambda: running.popen.poll() is not None, 60, lambda: running.err + shop.said())
        assert running.ends() == 121, running.err
    os.close(terminal)


def test_what_a_command_leaves_behind_does_not_keep_its_run(shop: World) -> None:
    result = tasks.spoken.enqueue("one", leave_behind=True)
    shop.finish(result)
    assert result.status == "SUCCESSFUL"
    assert "one" in result.output


def test_exec_only_prints_the_id_when_it_is_detached(shop: World, tmp_path: Path) -> None:
    code, out, err = ended(shop, tmp_path, "--detach", "--", "speak", "one")
    assert (code, err) == (0, "")
    run = TaskRun.objects.get(pk=out.decode().strip())
    until(lambda: TaskRun.objects.get(pk=run.pk).status == "SUCCESSFUL", 60, shop.said)


def test_exec_says_when_a_second_attempt_repeats_what_stdout_has(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with mq_exec(shop, tmp_path, "--", "speak", "one", "two", "--gate", str(gate)) as running:
        until(lambda: running.out == b"one", 60, lambda: running.err + shop.said())
        machine = Attempt.objects.get(run=running.run().pk).machine
        with shop.emulator.client() as client:
            client.destroy(machine.fly_id, force=True)
        until(lambda: len(started(gate)) == 2, 60, shop.said)
        gate.touch()
        assert running.ends() == 74, running.err
        assert running.out == b"oneone two"
        assert "what stdout shows so far is of attempt 1" in running.err


def test_exec_goes_on_where_nobody_reads_its_output(shop: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    read, write = os.pipe()
    with (tmp_path / "err").open("wb") as err:
        popen = subprocess.Popen(
            [sys.executable, "manage.py", "mq_exec", "--", "speak", "one", "two", "--gate", str(gate)],
            cwd=WORKSHOP,
            env=shop.environment(),
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=err,
        )
    os.close(write)
    try:
        until(lambda: started(gate), 60, shop.said)
        os.close(read)
        gate.touch()
        said = (tmp_path / "err").read_text
        assert popen.wait(60) == 141, said()
        assert "nobody reads stdout any more" in said()
        assert "Traceback" not in said()
    finally:
        popen.kill()
        popen.wait()


def test_streams_are_stored_only_while_the_attempt_holds(shop: World) -> None:
    result = tasks.spoken.enqueue("one")
    shop.finish(result)
    before = OutputPiece.objects.filter(attempt__run=result.id).count()
    run = TaskRun.objects.get(pk=result.id)
    assert not streams.add(run.pk, run.epoch, [streams.Piece("stdout", 0, b"late")])
    assert OutputPiece.objects.filter(attempt__run=result.id).count() == before > 0
