"""The command, what it prints, and that no examination can keep another from being made."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from machinequeue.doctor import rounds, table
from machinequeue.doctor.facts import Facts
from machinequeue.doctor.findings import Finding, Status, failure, fine, skipped, warning
from machinequeue.management.commands.mq_doctor import Command
from tests.doctor.conftest import SECONDS, TOKEN
from tests.waiting import until
from tests.workshop import tasks
from tests.world import World

Doctor = Callable[..., Any]


def run(*words: str, tty: bool = False) -> tuple[int, str]:
    """The exit code, and what was printed."""
    out = StringIO()
    command = Command(stdout=out, force_color=tty, no_color=not tty)
    try:
        call_command(command, *words)
    except SystemExit as ended:
        return int(ended.code or 0), out.getvalue()
    return 0, out.getvalue()


@pytest.fixture
def patient(clinic: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have other examinations than there are: `patient(a=function)`."""

    def lay(**examinations: Any) -> None:
        monkeypatch.setattr(rounds, "EXAMINATIONS", examinations)
        monkeypatch.setattr(table, "EXAMINATIONS", examinations)

    return lay


def finds(*findings: Finding) -> Callable[[Facts], list[Finding]]:
    return lambda facts: [*findings]


WELL, NOTHING = fine("It is well."), skipped("There is none.")
WARM = warning("It is warm.", "Open a window.")
BROKEN = failure("It is broken.", "Mend it.")


# A healthy site -------------------------------------------------------------------------------------------------------


def test_a_site_that_works_is_well(empty_shop: World, doctor: Doctor) -> None:
    dispatcher = empty_shop.dispatcher()
    empty_shop.finish(tasks.add.using(queue_name="warm").enqueue(1))  # its machine waits for more, as real machines do
    environ = {name: value for name, value in empty_shop.environment().items() if name != "PYTHONUNBUFFERED"}
    done = doctor("--json", "--timeout", "60", **environ)
    dispatcher.end()
    assert done.stderr == ""
    told = json.loads(done.stdout)
    sentences = {each["examination"]: each["sentence"] for each in told["findings"]}
    assert sentences["drift"] == "0 deployed and 1 task machines have the same image and variables."
    assert sentences["leaks"] == "None of 1 task machines is given the token."
    assert sentences["image"] == "1 machine came up with local."
    wrong = {each["examination"]: each for each in told["findings"] if each["status"] not in ("ok", "skipped")}
    busy = {"database", "listen"}  # slow, when the computer is
    assert wrong.keys() <= busy, wrong
    assert told["ok"]
    assert done.returncode == 0
    assert {each["examination"] for each in told["findings"]} == set(rounds.EXAMINATIONS)
    assert "workshop-token" not in done.stdout


# The exit code --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("findings", "code", "strict"),
    [
        ((WELL, NOTHING), 0, 0),
        ((WELL, WARM), 0, 1),
        ((WELL, BROKEN), 1, 1),
        ((Finding(Status.BLOCKED, "Not examined."),), 1, 1),
    ],
)
def test_the_exit_code(patient: Any, findings: tuple[Finding, ...], code: int, strict: int) -> None:
    patient(a=finds(*findings))
    assert run()[0] == code
    assert run("--strict")[0] == strict
    assert run("--json")[0] == code


def test_a_wrong_call_is_exit_code_2(doctor: Doctor) -> None:
    with pytest.raises(CommandError, match="no examination 'databse'") as caught:
        call_command("mq_doctor", "--only", "databse")
    assert caught.value.returncode == 2
    assert doctor("--only", "databse").returncode == 2
    for words in (["--timeout", "0"], ["--timeout", "soon"], ["--nonsense"]):
        assert doctor(*words).returncode == 2


# What is printed ------------------------------------------------------------------------------------------------------


def test_the_table_is_at_most_80_columns_wide_and_uncoloured_off_a_terminal(patient: Any) -> None:
    long = failure("A sentence that goes on. " * 12, "Do this, and then that, and this. " * 8)
    patient(database=finds(WELL), dispatcher=finds(long, WARM))
    code, text = run()
    lines = text.splitlines()
    assert code == 1
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in text
    assert lines[0] == "ok      database   It is well."
    assert lines[1].startswith("FAILURE dispatcher A sentence")
    assert any(line.strip().startswith("-> Do this") for line in lines)
    assert lines[-1] == "1 failure, 1 warning, 1 ok"


def test_colours_on_a_terminal(patient: Any) -> None:
    patient(a=finds(BROKEN))
    assert "\x1b[" in run(tty=True)[1]


def test_json(patient: Any) -> None:
    patient(a=finds(WELL), b=finds(BROKEN))
    code, text = run("--json")
    told = json.loads(text)
    assert (code, told["ok"]) == (1, False)
    assert told["counts"] == {"ok": 1, "skipped": 0, "warning": 0, "blocked": 0, "failure": 1}
    assert told["findings"][1].pop("seconds") >= 0
    assert told["findings"][1] == {
        "examination": "b",
        "status": "failure",
        "sentence": "It is broken.",
        "remedy": "Mend it.",
    }


def test_the_list_asks_a_question_for_each(db: None) -> None:
    code, text = run("--list")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == [*rounds.EXAMINATIONS]
    assert all(line.endswith("?") for line in text.splitlines())


def test_only_what_was_asked_for_is_examined_in_the_usual_order(patient: Any) -> None:
    patient(a=finds(WELL), b=finds(WELL), c=finds(BROKEN))
    code, text = run("--only", "b", "--only", "a")
    assert code == 0
    assert [line.split()[1] for line in text.splitlines()[:2]] == ["a", "b"]


# One examination and the others ---------------------------------------------------------------------------------------


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_an_examination_that_hangs_is_left_behind(gate: threading.Event) -> None:
    [found] = rounds._within(0.2, lambda facts: [WELL] if gate.wait() else [], Facts())
    assert (found.status, "no answer within 0.2 s" in found.sentence) == (Status.FAILURE, True)


def test_an_examination_that_raises_hides_no_other_and_tells_no_secret(patient: Any) -> None:
    def raises(facts: Facts) -> list[Finding]:
        raise RuntimeError(f"boom with {TOKEN}")

    patient(b=raises, c=finds(WELL))
    found = {report.name: report.findings for report in rounds.examine(seconds=SECONDS)}
    assert found["b"][0].status == Status.FAILURE
    assert "RuntimeError: boom with [hidden]" in found["b"][0].sentence
    assert found["c"] == (WELL,)


def test_a_remedy_tells_no_secret_either(patient: Any, settings: Any) -> None:
    settings.MACHINEQUEUE = {**settings.MACHINEQUEUE, "REDIS_URL": "redis://:p[w-of-redis@host:6379/0"}
    told = f"cannot use {settings.MACHINEQUEUE['REDIS_URL']}"
    patient(b=finds(Finding(Status.FAILURE, told, f"It {told}")))
    [report] = rounds.examine(seconds=SECONDS)
    assert [(each.sentence, each.remedy) for each in report.findings] == [
        ("cannot use [hidden]", "It cannot use [hidden]")
    ]


def test_a_fact_that_somebody_still_waits_for_is_not_asked_for_again(gate: threading.Event) -> None:
    asked: list[str] = []

    def slow(facts: Facts) -> list[Finding]:
        facts._fact("slow", lambda: (asked.append("x"), gate.wait()), "first", own=True)
        return [WELL]

    def other(facts: Facts) -> list[Finding]:
        facts._fact("slow", lambda: asked.append("y"), "first", own=False)
        return [WELL]

    facts = Facts()
    until(lambda: rounds._within(0.2, slow, facts) and asked, SECONDS)
    assert rounds._within(SECONDS, other, facts) == [Finding(Status.BLOCKED, "Not examined: mend `first` first.")]
    assert asked == ["x"]


# The documentation ----------------------------------------------------------------------------------------------------


def test_every_examination_is_explained_in_its_order() -> None:
    page = (Path(rounds.__file__).parents[2] / "docs" / "how-to" / "diagnose.md").read_text(encoding="utf-8")
    explained = re.findall(r"^### (\w+)\n\n\*(.+)\*\n\n\S", page, re.MULTILINE)
    assert explained == [(name, rounds.question(name)) for name in rounds.EXAMINATIONS]
