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
    first = asked.split(",")[0].strip()
    if first in REGIONS:
        return first
    groups = _ALIASES.get(first, (first,))
    members = [code for code, (_, group) in REGIONS.items() if group in groups]
    if not members:
        raise bad_request(f"target region '{first}' not found")
    return default if default in members else members[0]


def described(nearest: str) -> dict[str, Any]:
    """The answer of platform/regions. Fly spells the list with a capital letter, against its specification."""
    rows = [{"code": code, "name": name, "geo_region": group} for code, (name, group) in REGIONS.items()]
    return {"Regions": rows, "Nearest": nearest}
