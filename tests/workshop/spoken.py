"""Management commands of the workshop as tasks."""

from typing import Any

from django.core.management import CommandError

from machinequeue import command_task


def _at_once(error: BaseException, result: Any) -> float:
    return 0.0


spoken = command_task("speak", memory_mb=1024, timeout=60)
stubborn = command_task("speak", max_attempts=2, retry_on=[CommandError], backoff=_at_once)
