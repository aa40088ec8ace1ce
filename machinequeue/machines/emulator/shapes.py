"""Which kind of value a field of a config has on Fly where nothing else reads it: what is only kept is right too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from machinequeue.machines.emulator.answers import bad_request

_FIELDS: Mapping[type, tuple[str, ...]] = {
    bool: ("auto_destroy", "disable_machine_autostart"),
    dict: ("cache_drive", "checks", "dns", "metrics", "rootfs", "spot"),
    list: ("containers", "mounts", "standbys", "statics"),
    str: ("image", "schedule", "size"),
}
_WORDS = {bool: "a boolean", dict: "an object", list: "a list", str: "a string"}
_KINDS = {field: kind for kind, fields in _FIELDS.items() for field in fields}


def shaped(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without its nulls, which say nothing. Raises a Refusal for a field of another kind than Fly's."""
    for field, value in config.items():
        kind = _KINDS.get(field)
        if kind is not None and value is not None and not isinstance(value, kind):
            raise bad_request(f"config.{field} must be {_WORDS[kind]}")
    return {field: value for field, value in config.items() if value is not None}
