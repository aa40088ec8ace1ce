"""Serverless machines: create what web processes wish for, keep it current, take away what nobody asks for.

A new image gets a machine of its own beside the one that answers. Only when the new one has said that its server
answers is the old one retired, and only when web processes have had time to notice is it stopped, as gently as a deploy
stops a machine.
"""

import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.conf import settings as django_settings

from machinequeue import conf
from machinequeue.dispatch.launch import Launcher, log_tail, site
from machinequeue.lifecycle import ServerlessStatus as Status
from machinequeue.machines import schema
from machinequeue.machines.errors import MachinesError, NotFound
from machinequeue.records import ServerlessMachine, dispatchers, serverless
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.dispatch")

LOOK_SECONDS = 5.0
LOCAL_LOOK_SECONDS = 2.0
QUIET_SECONDS = 60.0
"""With no row, Fly is asked for leaked machines this often."""
UNANSWERED_SECONDS = 90.0
"""After so long a create call whose answer nobody noted is made again, under the same name."""
STOP_SECONDS = 90.0
"""From the end of the drain until a machine that does not stop is destroyed all the same."""
LONGEST_PAUSE = 600.0
FORGET_SECONDS = 86_400.0
RESTING = frozenset({"stopped", "suspended", "failed"})
MARK = "mq_serverless"
"""Metadata that only these machines have; task machines have `mq_site`, which the reconciler lists by."""


@dataclass
class Keeper:
    """One round per call, by the leader; harmless when two lead for a moment."""

    launcher: Launcher
    _look_at: float = 0.0
    _listed: dict[str, schema.Machine] = field(default_factory=dict)
    _cordoned: set[str] = field(default_factory=set)
    """Ids of machines that proxies were told to leave alone; forgotten with the list that knows them no more."""

    def __call__(self) -> None:
        """Bring rows and machines one step closer to each other."""
        settings = conf.settings()
        rows = serverless.present(settings.app)
        if rows:
            self.wake()
        looked = self._look(bool(rows))
        image = dispatchers.current_image() or settings.image
        for row in rows:
            if row.status == Status.WISHED:
                self._wished(row, image)
            elif row.status == Status.CREATING:
                self._creating(row, image, looked)
            elif row.status == Status.READY:
                self._ready(row, rows, image, looked)
            elif looked:
                self._retiring(row)

    # What Fly says --------------------------------------------------------------------------------------------------

    def _look(self, often: bool) -> bool:
        """Ask for the list, now and then. False when it is not known."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + (self._pace() if often else QUIET_SECONDS)
        if not often and not serverless.ever():
            return False  # a site without serverless views need not ask
        try:
            listed = self.launcher.client.list(metadata={MARK: site()})
            self._listed = {machine.name: machine for machine in listed}
            self._cordoned &= {machine.id for machine in listed}
            self._destroy_leaked()
        except MachinesError as error:
            emit("api.unreachable", error=str(error))
            return False
        serverless.prune(FORGET_SECONDS)
        return True

    @staticmethod
    def _pace() -> float:
        return LOOK_SECONDS if conf.settings().api_rate else LOCAL_LOOK_SECONDS

    def wake(self) -> None:
        """Look at Fly in the next round."""
        self._look_at = min(self._look_at, time.monotonic() + self._pace())

    def _destroy_leaked(self) -> None:
        """Machines that no row speaks of: an answer that got lost, or a row that is gone."""
        age = timedelta(seconds=conf.settings().leaked_seconds)
        strays = [each for each in self._listed.values() if _is_ours(each)]
        known = serverless.names() if strays else set()
        for machine in strays:
            young = machine.created_at is not None and machine.created_at > datetime.now(UTC) - age
            if machine.name in known or young or machine.state in ("destroyed", "destroying"):
                continue
            emit("serverless.leaked", machine=machine.name, fly_id=machine.id, state=machine.state)
            try:
                self.launcher.client.destroy(machine.id, force=True)
            except MachinesError as error:
                # One that cannot be destroyed now keeps nobody from looking after the others.
                logger.info("Serverless machine %s could not be destroyed yet: %s", machine.name, error)

    def _found(self, row: ServerlessMachine) -> schema.Machine | None:
        """What Fly says of this machine; None when it is gone. Raises MachinesError when nobody knows."""
        listed = self._listed.get(row.name)
        if listed is not None and listed.state not in ("destroyed", "destroying"):
            serverless.seen(row, listed.state)
            return listed
        if not row.fly_id:
            return None
        try:
            found = self.launcher.client.get(row.fly_id)
        except NotFound:
            return None
        return None if found.state == "destroyed" else found

    # One row --------------------------------------------------------------------------------------------------------

    def _wished(self, row: ServerlessMachine, image: str) -> None:
        if _is_forgotten(row):
            serverless.drop(row)
        elif row.image != image or not row.name:
            serverless.aim(row, image, _name())
        elif row.next_at <= _now(row) and serverless.requesting(row):
            self._create(row)

    def _create(self, row: ServerlessMachine) -> None:
        try:
            made = self.launcher.client.create(self._request(row))
        except MachinesError as error:
            reason = f"no machine could be created ({type(error).__name__}): {error.message}. {error.advice}"
            # The name stays: should Fly have made it after all, the next call finds it.
            serverless.failed(row, reason, pause=_pause(row), name=row.name)
            emit("serverless.refused", machine=row.name, error=str(error))
            return
        serverless.created(row, fly_id=made.id, region=made.region, state=made.state)
        emit("serverless.created", machine=row.name, fly_id=made.id, region=made.region, image=row.image)
        self.wake()

    def _creating(self, row: ServerlessMachine, image: str, looked: bool) -> None:
        if row.image != image or _is_forgotten(row):
            serverless.retire(row, "its image is not the current one" if row.image != image else "nobody asks for it")
            return
        if not looked:
            return
        settings = conf.settings()
        age = (_now(row) - row.requested_at).total_seconds() if row.requested_at else 0.0
        try:
            found = self._found(row)
            if found is None:
                if row.fly_id or age > UNANSWERED_SECONDS:
                    self._again(row, "the machine ended before its server answered", None)
                return
            serverless.created(row, fly_id=found.id, region=found.region, state=found.state)
            if found.state in RESTING and found.exit_event is not None:
                code = found.exit_event.exit_code
                self._again(row, f"its server ended with exit code {code} before it answered", found)
            elif age > settings.boot_timeout + settings.check_in_timeout:
                self._again(row, f"its server did not answer on port {settings.serverless_port} for {age:.0f} s", found)
        except MachinesError as error:
            logger.info("Serverless machine %s could not be read: %s", row.name, error)

    def _again(self, row: ServerlessMachine, why: str, found: schema.Machine | None) -> None:
        if found is not None:
            tail = log_tail(self.launcher.client, found.id)
            why = f"{why}; its log ends: {tail}" if tail else why
            self.launcher.client.destroy(found.id, force=True)
        if serverless.failed(row, why, pause=_pause(row), name=_name()):
            emit("serverless.failed", machine=row.name, fly_id=row.fly_id, reason=why)

    def _ready(self, row: ServerlessMachine, rows: Iterable[ServerlessMachine], image: str, looked: bool) -> None:
        if _is_forgotten(row):
            self._retire(row, "nobody asks for it")
            return
        if row.image != image:
            heirs = [each for each in rows if each.size_key == row.size_key and each.image == image]
            if any(heir.status == Status.READY for heir in heirs):
                self._retire(row, "its image is not the current one")
                return
            if not any(heir.status in (Status.WISHED, Status.CREATING) for heir in heirs):
                serverless.succeed(row, image, _name())
        if not looked:
            return
        try:
            if self._found(row) is None and serverless.gone(row, "it ended without having been asked to"):
                emit("serverless.gone", machine=row.name, fly_id=row.fly_id)
        except MachinesError as error:
            logger.info("Serverless machine %s could not be read: %s", row.name, error)

    def _retire(self, row: ServerlessMachine, why: str) -> None:
        if serverless.retire(row, why):
            emit("serverless.retired", machine=row.name, fly_id=row.fly_id, reason=why)

    def _retiring(self, row: ServerlessMachine) -> None:
        age = (_now(row) - row.retired_at).total_seconds() if row.retired_at else 0.0
        drain = conf.settings().serverless_drain if row.ready_at else 0.0
        if age < drain:
            return
        try:
            found = self._found(row)
            if found is None:
                if serverless.gone(row):
                    emit("serverless.gone", machine=row.name, fly_id=row.fly_id)
            elif found.state == "started" and age < drain + STOP_SECONDS:
                self._end(found)
            elif found.state in RESTING or age >= drain + STOP_SECONDS or not row.ready_at:
                self.launcher.client.destroy(found.id, force=True)
        except MachinesError as error:
            logger.info("Serverless machine %s could not be ended yet: %s", row.name, error)

    def _end(self, machine: schema.Machine) -> None:
        """Cordon it, and in a later round stop it: what proxies still send meanwhile is answered."""
        if machine.id not in self._cordoned:
            self.launcher.client.cordon(machine.id)
            self._cordoned.add(machine.id)
            self.wake()
            return
        # Requests in flight have the time of its stop_config.
        self.launcher.client.stop(machine.id)

    # The request ----------------------------------------------------------------------------------------------------

    def _request(self, row: ServerlessMachine) -> schema.CreateRequest:
        settings, size = conf.settings(), row.size
        command = ["python", "-m", "machinequeue.serverless", *filled(settings.serverless_command)]
        config = {
            "image": row.image,
            "init": {"cmd": command},
            "guest": {name: size[name] for name in ("cpu_kind", "cpus", "memory_mb")},
            # A server that ends, of itself or because it is idle, stays stopped until a request starts it.
            "auto_destroy": False,
            "restart": {"policy": "no"},
            "stop_config": {"signal": "SIGTERM", "timeout": f"{conf.GRACE_SECONDS}s"},
            "env": self.launcher.env(
                conf.TOKENS,
                MACHINEQUEUE_SERVERLESS=row.name,
                MACHINEQUEUE_SERVERLESS_SIZE=row.size_key,
                MACHINEQUEUE_SERVERLESS_PORT=str(settings.serverless_port),
            ),
            # Nothing of Fly's own, or `fly deploy` would update or destroy it; `mq_machine` lets the client find it.
            "metadata": {"fly_process_group": settings.process_group, "mq_machine": row.name, MARK: site()},
            "dns": {"skip_registration": True},
            "services": [
                {
                    "protocol": "tcp",
                    "internal_port": settings.serverless_port,
                    "autostart": True,
                    "autostop": "stop",
                    "min_machines_running": 0,
                    "ports": [{"port": 80, "handlers": ["http"]}, {"port": 443, "handlers": ["tls", "http"]}],
                }
            ],
            **self.launcher.without(command, conf.TOKENS),
        }
        return schema.CreateRequest(row.name, ",".join(size["regions"]) or None, config)


def _is_ours(machine: schema.Machine) -> bool:
    return machine.metadata.get(MARK) == site() and machine.metadata.get("mq_machine") == machine.name


def _is_forgotten(row: ServerlessMachine) -> bool:
    return (_now(row) - row.asked_at).total_seconds() > conf.settings().serverless_keep


def _now(row: ServerlessMachine) -> datetime:
    now: datetime = row.now  # type: ignore[attr-defined]  # annotated by `present`
    return now


def _name() -> str:
    return f"mq-serverless-{secrets.token_hex(5)}"


def _pause(row: ServerlessMachine) -> float:
    return min(2.0 ** min(row.failures + 1, 10), LONGEST_PAUSE)


def filled(command: list[str]) -> list[str]:
    """The command with what this project calls its applications: `shop.wsgi:application`."""
    places = {
        "{wsgi}": _spelled(getattr(django_settings, "WSGI_APPLICATION", None)),
        "{asgi}": _spelled(getattr(django_settings, "ASGI_APPLICATION", None)),
    }
    for place, value in places.items():
        command = [word.replace(place, value) for word in command]
    return command


def _spelled(path: str | None) -> str:
    module, _, name = (path or "").rpartition(".")
    return f"{module}:{name}"
