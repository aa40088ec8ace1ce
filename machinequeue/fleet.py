"""The machines of our app as an operator sees and handles them, by Fly's API and by the rows.

Ours are those that carry our metadata. Others in the same app are shown when asked for, and touched only when
somebody says that they know.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from machinequeue import conf, lifecycle
from machinequeue.dispatch.launch import open_client, site
from machinequeue.errors import ConfigurationError, MachineQueueError
from machinequeue.machines import prices, schema
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.errors import MachinesError, NotFound, Unauthorized
from machinequeue.records import Machine, machines

LOOK_SECONDS = 1.0
"""How often a log is looked at for more."""
GONE = frozenset({"destroyed", "destroying"})


class Refused(MachineQueueError):
    """What was asked cannot be done, with the reason and the remedy."""


@dataclass(frozen=True)
class Seen:
    """A machine as Fly describes it, and its row."""

    machine: schema.Machine
    row: Machine | None
    ours: bool

    @property
    def work(self) -> str:
        """What it is to us."""
        if not self.ours:
            return "not ours"
        return self.row.status if self.row is not None else "no row"

    @property
    def age(self) -> float | None:
        """Seconds since it was created, by this computer's clock."""
        created = self.machine.created_at
        return None if created is None else max(0.0, (datetime.now(UTC) - created).total_seconds())

    @property
    def per_hour(self) -> float | None:
        """USD an hour now; only started machines cost anything worth mentioning. None: its price is not known."""
        if self.machine.state != "started":
            return 0.0
        guest = self.machine.guest
        rate = prices.per_second(guest, self.machine.region) if guest is not None else None
        return None if rate is None else rate * 3600

    def as_dict(self) -> dict[str, Any]:
        """JSON values only, without env, files or anything else that may be secret."""
        row = self.row
        held = machines.holding(row.pk) if row is not None else []
        return {
            **self.machine.as_dict(),
            "ours": self.ours,
            "status": row.status if row is not None else None,
            "queue": row.queue if row is not None else None,
            "reason": row.reason if row is not None else None,
            "deadline_at": row.deadline_at.isoformat() if row is not None else None,
            "runs": [{"id": str(each.run_id), "task": each.task} for each in held],
            "usd_per_hour": self.per_hour,
        }


@contextmanager
def opened() -> Iterator["Fleet"]:
    """The fleet of the app that the settings name. Raises Refused for whatever keeps it from being asked."""
    try:
        with open_client() as client:
            yield Fleet(client)
    except ConfigurationError as error:
        raise Refused(str(error)) from error
    except Unauthorized as error:
        raise Refused(f"FLY_API_TOKEN: {error.message} {error.advice}") from error
    except MachinesError as error:
        raise Refused(f"{error}. {error.advice}") from error


@dataclass
class Fleet:
    """What can be asked and done. Every method may raise MachinesError."""

    client: MachinesClient
    pause: Callable[[float], None] = time.sleep

    def list(self, *, everything: bool = False) -> "list[Seen]":
        """Our machines, oldest first; with `everything`, all of the app."""
        found = self.client.list(metadata=None if everything else {"mq_site": site()})
        rows = machines.named([machine.name for machine in found])
        seen = [self._seen(machine, rows.get(machine.name)) for machine in found]
        return sorted(seen, key=lambda each: (each.machine.created_at or datetime.now(UTC), each.machine.id))

    def find(self, name: str) -> Seen:
        """A machine by its name or id, also one that was destroyed within two days. Raises Refused."""
        everything = self.list(everything=True)
        for seen in everything:
            if name in (seen.machine.name, seen.machine.id):
                return seen
        row = machines.named([name]).get(name)
        try:
            machine = self.client.get(row.fly_id if row is not None and row.fly_id else name)
        except NotFound:
            known = [word for each in everything for word in (each.machine.name, each.machine.id)]
            raise Refused(f"There is no machine {name!r}.{conf.suggest(name, known) if known else ''}") from None
        return self._seen(machine, row or machines.named([machine.name]).get(machine.name))

    def _seen(self, machine: schema.Machine, row: Machine | None) -> Seen:
        return Seen(machine, row, machine.metadata.get("mq_site") == site())

    # Change ---------------------------------------------------------------------------------------------------------

    def start(self, seen: Seen, *, not_ours: bool = False) -> str:
        """Start a machine that rests; what happened."""
        self._may_touch(seen, not_ours)
        self.client.start(seen.machine.id)
        return f"{seen.machine.name} starts."

    def stop(self, seen: Seen, *, not_ours: bool = False) -> str:
        """Ask a machine to stop; what happened, and to which run."""
        self._may_touch(seen, not_ours)
        fate = _fate(seen)
        self.client.stop(seen.machine.id)
        return f"{seen.machine.name} is asked to stop.{fate}"

    def destroy(self, seen: Seen, *, not_ours: bool = False, force: bool = False) -> str:
        """Destroy a machine; what happened, and to which run. Raises Refused for a busy one without `force`."""
        self._may_touch(seen, not_ours)
        fate = _fate(seen)
        if fate and not force:
            raise Refused(f"{seen.machine.name} is busy.{fate} Add --force to destroy it all the same.")
        self.client.destroy(seen.machine.id, force=True)
        return f"{seen.machine.name} is destroyed.{fate}"

    def _may_touch(self, seen: Seen, not_ours: bool) -> None:
        if seen.machine.state in GONE:
            raise Refused(f"{seen.machine.name} is {seen.machine.state}.")
        if seen.ours or not_ours:
            return
        whose = f"mq_site {seen.machine.metadata['mq_site']}" if "mq_site" in seen.machine.metadata else "no mq_site"
        raise Refused(
            f"{seen.machine.name} is not one of ours ({whose}, and ours is {site()}): it may serve the site, or be "
            "another project's. Add --yes-not-ours if it is to be touched all the same."
        )

    # Logs -----------------------------------------------------------------------------------------------------------

    def logs(self, seen: Seen, *, follow: bool = False) -> Iterator[schema.LogLine]:
        """What the machine printed, oldest first; with `follow`, until the machine is gone and nothing more comes."""
        token = ""
        while True:
            ended = not follow or self._is_gone(seen)  # asked before: what it said last comes after
            for page in self.client.logs(seen.machine.id, next_token=token):
                yield from page.lines
                token = page.next_token or token
            if ended:
                return
            self.pause(LOOK_SECONDS)

    def _is_gone(self, seen: Seen) -> bool:
        try:
            return self.client.get(seen.machine.id).state in GONE
        except NotFound:
            return True


def _fate(seen: Seen) -> str:
    """What becomes of what the machine is at; empty when it is at nothing."""
    held = machines.holding(seen.row.pk) if seen.row is not None else []
    sentences = []
    for each in held:
        poison = each.lost_attempts + 1 >= lifecycle.INFRASTRUCTURE_BUDGET
        becomes = "fails: too many of its machines were lost" if poison else "goes back to the queue"
        sentences.append(f" Run {each.run_id} ({each.task}) {becomes}.")
    return "".join(sentences)
