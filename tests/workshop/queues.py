"""The queues of the workshop, for its own settings and for those of the tests."""

QUEUES = {
    "default": {},
    "reports": {"memory_mb": 2048, "cpus": 2},
    "images": {},
    "warm": {"idle_timeout": 60},
    "alone": {"isolation": "machine"},
    "narrow": {"max_machines": 1},
}
