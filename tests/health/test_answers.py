"""Sentences: durations and sizes in the unit that matters, in the language of the reader."""

import pytest
from django.utils import translation
from django.utils.translation import ngettext_lazy

from machinequeue.health import Status, failure, ok, warning
from machinequeue.health.answers import Duration, Size, worst


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (119, "119 s"), (121, "2 min"), (7200, "2 h"), (26 * 3600, "26 h"), (9 * 86400, "9 d")],
)
def test_durations(seconds: float, said: str) -> None:
    assert str(Duration(seconds)) == said


@pytest.mark.parametrize(("many", "said"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (42_300_000, "42.3 MB")])
def test_sizes(many: int, said: str) -> None:
    assert str(Size(many)) == said


def test_a_sentence_shows_its_figures_and_programs_get_the_numbers() -> None:
    answer = warning("%(size_bytes)s after %(age_seconds)s", "wait %(age_seconds)s", size_bytes=2e6, age_seconds=180.0)
    assert str(answer.sentence) == "2 MB after 3 min"
    assert str(answer.remedy) == "wait 3 min"
    assert answer.figures == {"size_bytes": 2e6, "age_seconds": 180.0}


def test_a_sentence_is_put_together_in_the_language_of_its_reader() -> None:
    one_or_more = ngettext_lazy("%(number)d machine", "%(number)d machines", "number")
    with translation.override("en"):
        assert str(ok(one_or_more, number=1).sentence) == "1 machine"
        assert str(ok(one_or_more, number=3).sentence) == "3 machines"


def test_the_worst_of_several() -> None:
    answers = [ok(""), failure(""), warning("")]
    assert worst([answer.status for answer in answers]) == Status.FAILURE
    assert worst([Status.OK, Status.WARNING]) == Status.WARNING
    assert worst([]) == Status.OK
