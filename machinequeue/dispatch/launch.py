"""Launch one reserved machine: the create call, and what follows each way it can fail."""

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from django.db import connections

from machinequeue import conf
from machinequeue.errors import ConfigurationError
from machinequeue.lifecycle import CircuitKind
from machinequeue.machines import schema
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.errors import (
    Ambiguous,
    ImageNotFound,
    MachinesError,
    NoCapacity,
    NotFound,
    QuotaReached,
    RateLimited,
    Rejected,
    Unauthorized,
)
from machinequeue.machines.schema import CreateRequest
from machinequeue.payload import scrub
from machinequeue.records import Machine, circuits, machines, queues, runs, sql
from machinequeue.records.pacing import SharedPace
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.dispatch")

CONTAINER = "container"
"""The key of a spec whose machines run code that is not ours: see `machinequeue.containers`."""
SECRETS_AGE = 60.0
"""Seconds for which the names of the app's secrets are believed."""
LONGEST_PAUSE = 60.0
LOG_LINES, LOG_CHARACTERS = 8, 2_000


@lru_cache(maxsize=1)
def site() -> str:
    """Who we are among those who may share a Fly app: a hash of where our tables are. Machines carry it as metadata."""
    database = connections.databases[sql.alias()]
    where = "|".join(str(database.get(key, "")) for key in ("ENGINE", "HOST", "PORT", "NAME"))
    return hashlib.sha256(where.encode()).hexdigest()[:12]


def open_client() -> MachinesClient:
    """A client of the app and the API that the settings name; creates and lists keep the pace that they ask for.

    Raises ConfigurationError without app or token, and for a token or an address that cannot be used.
    """
    settings = conf.need("app", "api_token")
    pace = SharedPace(settings.api_rate) if settings.api_rate else None
    try:
        return MachinesClient(settings.app, token=settings.api_token, base_url=settings.api_url, pace=pace)
    except Unauthorized as error:
        raise ConfigurationError(f"FLY_API_TOKEN: {error.message} {error.advice}") from error
    except ValueError as error:
        raise ConfigurationError(f"FLY_API_HOSTNAME (or MACHINEQUEUE['API_URL']): {error}") from error


def _open_container_client() -> MachinesClient:
    """A client of the app whose machines run code that is not ours."""
    settings = conf.need("app", "api_token")
    pace = SharedPace(settings.api_rate) if settings.api_rate else None
    token = settings.container_token or settings.api_token
    return MachinesClient(conf.container_app(settings), token=token, base_url=settings.api_url, pace=pace)


def log_tail(client: MachinesClient, fly_id: str) -> str:
    """The last lines that a machine itself printed, for who has to mend it; empty when they cannot be had."""
    try:
        page = next(iter(client.logs(fly_id)), None)
    except MachinesError as error:
        # Deploy tokens may be refused here; a reason is good without.
        logger.info("The log of machine %s could not be read: %s", fly_id, error)
        return ""
    lines = [line.message for line in page.lines if line.provider in ("app", "")] if page is not None else []
    return scrub("\n".join(lines[-LOG_LINES:])[-LOG_CHARACTERS:])


@dataclass
class Launcher:
    """Creates machines through one client; shared by the threads of a dispatcher."""

    client: MachinesClient
    base: dict[str, Any] = field(default_factory=dict, repr=False)
    """The env of the dispatcher's own machine, on Fly."""
    _secrets: tuple[float, list[str]] | None = field(default=None, repr=False)
    _container_client: MachinesClient | None = None
    _opening: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def client_of(self, machine: Machine) -> MachinesClient:
        """The client of the app that the machine is in."""
        if CONTAINER not in machine.spec:
            return self.client
        with self._opening:
            if self._container_client is None:
                self._container_client = _open_container_client()
            return self._container_client

    def container_client(self) -> MachinesClient | None:
        """The client of the app for code that is not ours, once it is named or a machine was asked for there."""
        settings = conf.settings()
        if not settings.container_app and not machines.has_app(conf.container_app(settings)):
            return None
        return self.client_of(Machine(spec={CONTAINER: {}}))

    def close(self) -> None:
        """Close what was opened beside `client`."""
        with self._opening:
            if self._container_client is not None:
                self._container_client.close()
                self._container_client = None

    def adopt_own_machine(self) -> int:
        """On Fly, take over the env that this dispatcher's machine has from fly.toml; returns the release's version.

        Fly gives a machine made through the API the app's secrets, but nothing of fly.toml's [env].
        """
        own_id = os.environ.get("FLY_MACHINE_ID")
        if not own_id:
            return 0
        own = self.client.get(own_id)
        self.base = dict((own.config or {}).get("env") or {})
        version = own.metadata.get("fly_release_version", "0")
        return int(version) if version.isdigit() else 0

    def launch(self, machine: Machine) -> bool:
        """Make the create call of a reserved machine, unless another dispatcher does.

        False when Fly refused or could not be asked, so that more of the same makes no sense now.
        """
        if not machines.requesting(machine):
            return True
        try:
            created = self._create(machine)
        except Ambiguous as error:
            # Whether it exists is unknown: the row stays reserved, and the same name is asked for again later.
            _pause(machine, f"Fly did not answer: {error.message}")
            emit("machine.unreachable", machine=machine.name, error=str(error))
            return False
        except MachinesError as error:
            self._refused(machine, error)
            return False
        machines.created(
            machine, fly_id=created.id, region=created.region, state=created.state, request_ids=[created.request_id]
        )
        queues.launched(machine)
        circuits.launched(machine.image, machine.spec_key)
        emit("machine.created", machine=machine.name, fly_id=created.id, queue=machine.queue, region=created.region)
        return True

    def _create(self, machine: Machine) -> schema.Machine:
        if CONTAINER not in machine.spec:
            return self.client.create(self._request(machine))
        request, client = self._container_request(machine), self.client_of(machine)
        try:
            return client.create(request)
        except NotFound:
            self._make_container_app(machine.app)
        return client.create(request)

    def _make_container_app(self, app: str) -> None:
        """Raises what Fly answers, with the remedy: few tokens may make apps."""
        try:
            org = str((self.client.app().get("organization") or {}).get("slug") or "personal")
            self.client.create_app(app, org, network=app)
        except MachinesError as error:
            error.message = (
                f"app {app}, for code that is not ours, is missing and could not be made ({error.message}). Make it "
                f"once: fly apps create {app} --network {app}, and set MACHINEQUEUE_CONTAINER_TOKEN to what "
                f"fly tokens create deploy -a {app} prints"
            )
            raise
        emit("app.created", app=app)

    def _refused(self, machine: Machine, error: MachinesError) -> None:
        if isinstance(error, RateLimited):
            self._too_fast(machine, error)
            return
        reason = f"no machine could be created ({type(error).__name__}): {error.message}. {error.advice}"
        machines.refused(machine, reason, [error.request_id] if error.request_id else [])
        if (kind := _circuit(error)) is None:
            _pause(machine, reason)
        else:
            self._trip(machine, kind, reason, chosen=_CHOICES.search(error.message) is not None)
        emit("machine.refused", machine=machine.name, queue=machine.queue, error=str(error))

    def _too_fast(self, machine: Machine, error: RateLimited) -> None:
        """Nothing failed and nothing exists: the reservation is given back, and the queue's turn comes again."""
        machines.unsent(machine)
        circuits.give_back(machine.image, machine.spec_key)
        seconds = error.retry_after or 1.0
        queues.hold(machine, f"pacing: Fly takes about one create a second ({error.message})", seconds)
        emit("machine.paced", queue=machine.queue, seconds=round(seconds, 1))

    def _trip(self, machine: Machine, kind: CircuitKind, reason: str, *, chosen: bool) -> None:
        own: dict[CircuitKind, dict[str, Any]] = {
            CircuitKind.IMAGE: {"image": machine.image},
            CircuitKind.REJECTED: {"image": machine.image, "spec_key": machine.spec_key},
            CircuitKind.CAPACITY: {"spec_key": machine.spec_key},
        }
        lane = (machine.backend, machine.queue, machine.spec_key)
        if kind == CircuitKind.REJECTED and chosen and _chosen_by_runs(machine):
            emit("run.refused", queue=machine.queue, runs=runs.refuse(*lane, reason), error=reason)
            return
        # What is wrong with the app for code that is not ours must not hold back the others.
        scope = own[CircuitKind.REJECTED] if CONTAINER in machine.spec else own.get(kind, {})
        opened = circuits.failed(kind, reason, **scope)
        queues.explain(lane, reason)
        if opened:
            emit("circuit.opened", kind=kind.value, queue=machine.queue, reason=reason)
        if kind == CircuitKind.IMAGE and "image" in machine.spec and circuits.is_open(kind, machine.image):
            emit("run.refused", queue=machine.queue, runs=runs.refuse(*lane, reason), error=reason)

    # The request ----------------------------------------------------------------------------------------------------

    def _request(self, machine: Machine) -> CreateRequest:
        settings, spec = conf.settings(), machine.spec
        command = [*settings.command, machine.name]
        config: dict[str, Any] = {
            "image": machine.image,
            "init": {"cmd": command},
            "guest": {name: spec[name] for name in ("cpu_kind", "cpus", "memory_mb")},
            "auto_destroy": True,
            # Fly's default is to restart ten times; retries are the queue's.
            "restart": {"policy": "no"},
            "stop_config": {"signal": "SIGTERM", "timeout": f"{conf.GRACE_SECONDS}s"},
            "env": self._env(machine),
            "metadata": self._metadata(machine),
            # Or the machine would be given requests meant for the site at <app>.internal.
            "dns": {"skip_registration": True},
        }
        config |= self.without(command, {*conf.TOKENS, *settings.withhold_secrets})
        return CreateRequest(name=machine.name, region=",".join(spec["regions"]) or None, config=config)

    def _container_request(self, machine: Machine) -> CreateRequest:
        """A machine with nothing of ours: no env, no secrets, no services, and a command that only waits.

        Should everybody forget it, the command ends, and the machine with it.
        """
        config = {
            "image": machine.image,
            "init": {"exec": ["sleep", str(int(self._life(machine)))]},
            "guest": {name: machine.spec[name] for name in ("cpu_kind", "cpus", "memory_mb")},
            "auto_destroy": True,
            "restart": {"policy": "no"},
            "stop_config": {"signal": "SIGKILL", "timeout": "1s"},
            "metadata": {**self._metadata(machine), "mq_kind": CONTAINER},
            "dns": {"skip_registration": True},
        }
        regions = ",".join(machine.spec["regions"]) or None
        return CreateRequest(name=machine.name, region=regions, config=config, skip_secrets=True)

    def _life(self, machine: Machine) -> float:
        return conf.policy(machine.backend, machine.queue).machine_life + conf.settings().boot_timeout

    def without(self, command: list[str], withheld: Set[str]) -> dict[str, Any]:
        """What a machine's config needs so that these secrets of the app do not reach it."""
        names = self._app_secrets()
        if withheld.isdisjoint(names):
            return {}
        secrets = [{"env_var": name, "name": name} for name in names if name not in withheld]
        return {"processes": [{"cmd": command, "ignore_app_secrets": True, "secrets": secrets}]}

    def _env(self, machine: Machine) -> dict[str, str]:
        return self.env({*conf.TOKENS, *conf.settings().withhold_secrets}, MACHINEQUEUE_MACHINE=machine.name)

    def env(self, withheld: Set[str], **own: str) -> dict[str, str]:
        """The env of a machine of ours: of this dispatcher's machine without these, of the settings, and its own."""
        settings = conf.settings()
        inherited = {key: value for key, value in self.base.items() if key not in withheld}
        return {
            "DJANGO_SETTINGS_MODULE": os.environ["DJANGO_SETTINGS_MODULE"],
            **inherited,
            **settings.env,
            "FLY_PROCESS_GROUP": settings.process_group,
            **own,
        }

    def _metadata(self, machine: Machine) -> dict[str, str]:
        # Nothing of Fly's own (fly_platform_version ...): with it `fly deploy` would update or destroy the machine.
        return {
            "fly_process_group": conf.settings().process_group,
            "mq_machine": machine.name,
            "mq_site": site(),
            "mq_queue": machine.queue,
            "mq_deadline": str(int(time.time() + conf.policy(machine.backend, machine.queue).machine_life)),
        }

    def _app_secrets(self) -> list[str]:
        """The names of the app's secrets. Raises MachinesError as long as they could never be read.

        A machine launched without knowing them would get them all, the token too: then it is not launched.
        """
        if self._secrets and time.monotonic() - self._secrets[0] < SECRETS_AGE:
            return self._secrets[1]
        try:
            names = list(self.client.secrets())
        except MachinesError as error:
            if not self._secrets:
                raise
            logger.warning("The names of the app's secrets could not be read: %s", error)
            names = self._secrets[1]
        self._secrets = (time.monotonic(), names)
        return names


def _pause(machine: Machine, reason: str) -> None:
    """Launch nothing more of the queue for a while that doubles with each failure."""
    queues.launch_failed(machine, reason, pause_seconds=min(2.0 ** queues.failures(machine), LONGEST_PAUSE))


_CIRCUITS: tuple[tuple[type[MachinesError], CircuitKind], ...] = (
    (Unauthorized, CircuitKind.TOKEN),
    (NotFound, CircuitKind.APP),
    (QuotaReached, CircuitKind.QUOTA),
    (ImageNotFound, CircuitKind.IMAGE),
    (Rejected, CircuitKind.REJECTED),
    (NoCapacity, CircuitKind.CAPACITY),
)
_CHOICES = re.compile(r"guest|cpu|memory|region|size", re.IGNORECASE)
"""What a refusal names when it is about something that a task can choose. Anything else is the operator's to mend."""


def _circuit(error: MachinesError) -> CircuitKind | None:
    """What has to be mended before another launch makes sense; None when time alone may help."""
    return next((kind for of, kind in _CIRCUITS if isinstance(error, of)), None)


def _chosen_by_runs(machine: Machine) -> bool:
    """Whether the runs asked for this size, region or image themselves: it is not what their queue's policy says."""
    policy = conf.policy(machine.backend, machine.queue)
    return machine.spec_key != conf.spec_key(conf.spec_of(policy, machine.image))
