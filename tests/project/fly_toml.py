"""Read a fly.toml, and say what in it Fly does not document."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from machinequeue.conf import suggest

KEYS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "fly_toml_keys.toml").read_text())
_DURATION = re.compile(r"(\d+(\.\d+)?(ms|s|m|h))+")
_SIZE = re.compile(r"\d+ ?(mb|gb)", re.IGNORECASE)


def problems(config: Mapping[str, Any], known: Mapping[str, Any] = KEYS, where: str = "") -> list[str]:
    """A sentence for each key that is not documented and each value that its key does not take."""
    return list(_problems(config, known, where))


def _problems(config: Mapping[str, Any], known: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in config.items():
        place = f"{where}.{key}" if where else key
        wanted = known.get(key, known.get("*"))
        if wanted is None:
            yield f"fly.toml has no key {place!r}.{suggest(key, known)}"
        elif isinstance(wanted, Mapping):
            yield from _table(value, wanted, place)
        elif isinstance(wanted, list) and isinstance(wanted[0], Mapping):
            # Fly takes one table where it documents several: [mounts] and [[mounts]].
            for each in value if isinstance(value, list) else [value]:
                yield from _table(each, wanted[0], place)
        elif not fits(value, wanted):
            yield f"{place} = {value!r}: it takes {wanted if isinstance(wanted, str) else ', '.join(wanted)}."


def _table(value: Any, wanted: Mapping[str, Any], place: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from _problems(value, wanted, place)
    else:
        yield f"{place} = {value!r}: it is a table."


def fits(value: Any, wanted: "str | list[str]") -> bool:
    """Whether a value is of the type, or one of the values, that fly_toml_keys.toml names."""
    if isinstance(wanted, list):
        return value in wanted
    whole = isinstance(value, int) and not isinstance(value, bool)
    return {
        "string": isinstance(value, str),
        "integer": whole,
        "number": whole or isinstance(value, float),
        "boolean": isinstance(value, bool),
        "duration": whole or (isinstance(value, str) and _DURATION.fullmatch(value) is not None),
        "size": whole or (isinstance(value, str) and _SIZE.fullmatch(value) is not None),
        "strings": isinstance(value, list) and all(isinstance(each, str) for each in value),
        "table": isinstance(value, Mapping | list),
    }[wanted]


def seconds(value: "int | str") -> float:
    """A duration of fly.toml. Top-level whole numbers are seconds."""
    if isinstance(value, int):
        return float(value)
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(count) * units[unit] for count, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value))


def megabytes(value: "int | str") -> int:
    """A size of memory of fly.toml. Whole numbers are MB."""
    if isinstance(value, int):
        return value
    count, unit = re.fullmatch(r"(\d+) ?(mb|gb)", value.lower()).groups()  # type: ignore[union-attr]
    return int(count) * (1024 if unit == "gb" else 1)
