"""What JSON and PostgreSQL can carry unchanged: arguments and return values are refused, texts are scrubbed. Pure."""

import math
import re
from collections.abc import Mapping
from typing import Any

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class NotStorable(TypeError):
    """A value that JSON or PostgreSQL would refuse or silently change. The text names the place and the remedy."""


def normalize(value: Any, place: str = "value") -> Any:
    """The value as JSON will give it back: tuples become lists, bytes text, as Django's own tasks do.

    Raises NotStorable for what cannot be stored (NaN, NUL, a lone surrogate, other types) and for what
    would come back changed (dict keys that are not strings).
    """
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is int:
        return value
    if kind is str:
        return _text(value, place)
    if kind is float:
        return _number(value, place)
    try:
        return _structure(value, place)
    except RecursionError:
        raise NotStorable(f"{place:.80} is nested too deeply, or contains itself: store it elsewhere.") from None


def _structure(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        return {_key(key, place): normalize(item, f"{place}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [normalize(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, str):
        return _text(str.__str__(value), place)  # str() of an enum's member would be its name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _number(float(value), place)
    if isinstance(value, bytes):
        return _bytes(value, place)
    remedy = "pass its id, str() or isoformat() instead"
    if hasattr(value, "_meta") and hasattr(value, "pk"):
        remedy = "pass its primary key and load it in the task"
    raise NotStorable(f"{place} is a {type(value).__qualname__}, which JSON cannot carry: {remedy}.")


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise NotStorable(f"{place} has the key {key!r}, which JSON would turn into text: use str keys.")
    return _text(key, f"a key of {place}")


def _text(text: str, place: str) -> str:
    if _UNSTORABLE.search(text):
        raise NotStorable(
            f"{place} holds a NUL character or a lone surrogate, which PostgreSQL cannot store: remove it."
        )
    return text


def _number(number: float, place: str) -> float:
    if not math.isfinite(number):
        raise NotStorable(f"{place} is {number}, which JSON does not have: pass None or a string instead.")
    return number


def _bytes(data: bytes, place: str) -> str:
    try:
        return _text(data.decode(), place)
    except UnicodeDecodeError:
        raise NotStorable(
            f"{place} is bytes that are not UTF-8 text: store them as a file and pass its name."
        ) from None


def scrub(text: str, longest: int = 100_000) -> str:
    """Text that any database stores: no NUL, no lone surrogate, the middle cut out when it is longer."""
    clean = _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    if len(clean) <= longest:
        return clean
    half = longest // 2
    return f"{clean[:half]}\n… {len(clean) - longest} characters cut …\n{clean[-half:]}"
