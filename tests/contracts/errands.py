"""The task of the contracts: it asks a provider for something, and names the run so that asking twice is fine."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from machinequeue import machine_task


@dataclass
class Provider:
    """Somebody outside who can be asked: what was asked of them, by key, and whether they answer at all."""

    asked: "Counter[str]" = field(default_factory=Counter)
    away: bool = False

    def ask(self, key: str) -> None:
        self.asked[key] += 1
        if self.away:
            raise ConnectionError("the provider is away")

    def receipts(self, key: str) -> int:
        """What the provider did: asking again with the same key changes nothing."""
        return min(1, self.asked[key])


PROVIDER = Provider()


@machine_task(queue_name="errands", takes_context=True)
def errand(context: Any) -> str:
    PROVIDER.ask(context.task_result.id)
    return "done"
