"""The queues of the workshop, for its own settings and for those of the tests."""

import os
from typing import Any

QUEUES: dict[str, dict[str, Any]] = {
    "default": {},
    "reports": {"memory_mb": 2048, "cpus": 2},
    "images": {},
    "warm": {"idle_timeout": 60},
    "alone": {"isolation": "machine"},
    "kept": {"min_machines": int(os.environ.get("WORKSHOP_KEPT", "0")), "idle_timeout": 0.1},
    "narrow": {"max_machines": 1},
    "containers": {"max_machines": 4},
    "snippets": {"max_machines": 2, "machine_life": 300, "timeout": 10},
    "errands": {"isolation": "machine", "max_machines": 4, "max_attempts": 3},
}
