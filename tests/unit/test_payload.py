"""What is stored comes back unchanged, or is refused with the place and the remedy."""

import datetime
import enum
import json
import math
import uuid
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils.safestring import mark_safe
from hypothesis import given
from hypothesis import strategies as st

from machinequeue.payload import NotStorable, normalize, scrub


class Size(enum.IntEnum):
    BIG = 3


class Colour(enum.StrEnum):
    RED = "red"


class Mood(str, enum.Enum):  # noqa: UP042 - whose str() is not its value
    GOOD = "good"


texts = st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=("Cs",)))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner) | st.tuples(inner, inner),
    max_leaves=20,
)
anything = st.recursive(
    scalars | st.floats() | st.text() | st.binary() | st.just(object()) | st.just({1}),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


@given(plain)
def test_what_is_accepted_makes_the_round_trip_through_json_unchanged(value: Any) -> None:
    stored = normalize(value)
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert normalize(stored) == stored


@given(anything)
def test_whatever_comes_is_accepted_or_refused_and_never_something_else(value: Any) -> None:
    try:
        stored = normalize(value)
    except NotStorable as refusal:
        stored, refused = None, str(refusal)
    else:
        refused = ""
    if refused:
        assert refused.startswith(("value", "a key of value"))
    else:
        text = json.dumps(stored, allow_nan=False, ensure_ascii=False)
        text.encode()
        assert json.loads(text) == stored
        assert "\\u0000" not in text


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (b"bytes of text", "bytes of text"),
        (mark_safe("<b>"), "<b>"),
        (Colour.RED, "red"),
        (Mood.GOOD, "good"),
        (Size.BIG, 3),
        ({"a": ({"b": None},)}, {"a": [{"b": None}]}),
        (True, True),
        (10**30, 10**30),
    ],
)
def test_what_json_has_another_word_for_is_translated(value: Any, stored: Any) -> None:
    made = normalize(value)
    assert made == stored
    assert type(made) is type(stored)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "is nan, which JSON does not have"),
        ([math.inf], "value[0] is inf"),
        ("a\x00b", "holds a NUL character"),
        ("\ud800", "a lone surrogate"),
        ({"k": "\udfff"}, "value['k'] holds"),
        ({1: "one"}, "the key 1, which JSON would turn into text: use str keys"),
        ({None: 1}, "the key None"),
        ({"a\x00": 1}, "a key of value holds a NUL"),
        (b"\xff\xfe", "bytes that are not UTF-8 text: store them as a file"),
        (b"\x00", "holds a NUL"),
        (datetime.date(2026, 1, 1), "is a date, which JSON cannot carry: pass its id, str() or isoformat()"),
        (Decimal("1.5"), "is a Decimal"),
        (uuid.UUID(int=1), "is a UUID"),
        ({1, 2}, "is a set"),
        (object(), "is a object"),
        (User(pk=7), "is a User, which JSON cannot carry: pass its primary key and load it in the task"),
        (float, "is a type"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_the_place_and_the_remedy(value: Any, says: str) -> None:
    with pytest.raises(NotStorable) as caught:
        normalize(value)
    assert says in str(caught.value)


def test_a_structure_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotStorable, match="nested"):
        normalize(loop)


@given(st.text(max_size=300), st.integers(2, 100))
def test_a_scrubbed_text_is_storable_and_bounded(text: str, longest: int) -> None:
    clean = scrub(text, longest)
    clean.encode()
    assert "\x00" not in clean
    assert len(clean) <= longest + len(f"\n… {len(text)} characters cut …\n")
    if len(text) <= longest:
        assert len(clean) == len(text)


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    clean = scrub("a" * 60 + "b" * 60, 100)
    assert clean.startswith("a" * 50 + "\n… 20 characters cut …\n")
    assert clean.endswith("b" * 50)
