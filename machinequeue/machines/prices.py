"""What a started machine costs by the second. From Fly's pricing page (fly.io/docs/about/pricing), October 2026."""

from machinequeue.machines.schema import Guest

CPU_SECOND = {"shared": 8.465e-07, "performance": 1.2732e-05}
"""USD for a CPU with the memory that belongs to it."""
INCLUDED_GB = {"shared": 0.25, "performance": 2.0}
"""Memory that belongs to a CPU."""
MORE_GB_SECOND = 2.316e-06
REGION_FACTORS = {
    "ams": 1.038461538,
    "arn": 1.038461538,
    "cdg": 1.134615385,
    "dfw": 1.25,
    "ewr": 1,
    "fra": 1.153846154,
    "gru": 1.615384615,
    "iad": 1,
    "jnb": 1.302884615,
    "lax": 1.199519231,
    "lhr": 1.134615385,
    "nrt": 1.307692308,
    "ord": 1.25,
    "sin": 1.269230769,
    "sjc": 1.192307692,
    "syd": 1.269230769,
    "yyz": 1.115384615,
}


def per_second(guest: Guest, region: str) -> float | None:
    """USD a second of a started machine; None in a region, or of a CPU kind, whose price is not known here."""
    factor = REGION_FACTORS.get(region)
    if factor is None or guest.cpu_kind not in CPU_SECOND:
        return None
    more_gb = max(0.0, guest.memory_mb / 1024 - guest.cpus * INCLUDED_GB[guest.cpu_kind])
    return (guest.cpus * CPU_SECOND[guest.cpu_kind] + more_gb * MORE_GB_SECOND) * factor
