"""Fly's regions, and which one a create call means."""

from __future__ import annotations

from typing import Any

from machinequeue.machines.emulator.answers import bad_request

# code: (name, group alias)
REGIONS = {
    "ams": ("Amsterdam, Netherlands", "eu"),
    "arn": ("Stockholm, Sweden", "eu"),
    "bom": ("Mumbai, India", "apac"),
    "cdg": ("Paris, France", "eu"),
    "dfw": ("Dallas, Texas (US)", "us"),
    "ewr": ("Secaucus, NJ (US)", "us"),
    "fra": ("Frankfurt, Germany", "eu"),
    "gru": ("Sao Paulo, Brazil", "sa"),
    "iad": ("Ashburn, Virginia (US)", "us"),
    "jnb": ("Johannesburg, South Africa", "africa"),
    "lax": ("Los Angeles, California (US)", "us"),
    "lhr": ("London, United Kingdom", "eu"),
    "nrt": ("Tokyo, Japan", "apac"),
    "ord": ("Chicago, Illinois (US)", "us"),
    "sin": ("Singapore, Singapore", "apac"),
    "sjc": ("San Jose, California (US)", "us"),
    "syd": ("Sydney, Australia", "apac"),
    "yyz": ("Toronto, Canada", "na"),
}
_ALIASES = {"usa": ("us",), "na": ("us", "na"), "any": ("us", "na", "eu", "apac", "sa", "africa")}


def resolve(asked: object, default: str) -> str:
    """The first region of a prioritised list; a group means the default where that belongs to it."""
    if asked is None or asked == "":
        return default
    if not isinstance(asked, str):
        raise bad_request("region must be a string")
    return _members(asked.split(",")[0].strip(), default)[0]


def candidates(asked: str, default: str) -> list[str]:
    """Every region of a prioritised list in order, groups spread out, each once."""
    entries = [entry.strip() for entry in asked.split(",")] if asked else [default]
    return [*dict.fromkeys(code for entry in entries for code in _members(entry, default))]


def _members(entry: str, default: str) -> list[str]:
    """The regions that a code or a group stands for, the default first where it is one of them."""
    if entry in REGIONS:
        return [entry]
    groups = _ALIASES.get(entry, (entry,))
    members = [code for code, (_, group) in REGIONS.items() if group in groups]
    if not members:
        raise bad_request(f"target region '{entry}' not found")
    return sorted(members, key=lambda code: code != default)


def described(nearest: str) -> dict[str, Any]:
    """The answer of platform/regions: as specified, and with the capital letters that Fly was seen to answer."""
    rows = [{"code": code, "name": name, "geo_region": group} for code, (name, group) in REGIONS.items()]
    return {"regions": rows, "nearest": nearest, "Regions": rows, "Nearest": nearest}
