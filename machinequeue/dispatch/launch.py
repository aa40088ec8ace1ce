"""Launch one reserved machine: the create call, and what follows each way it can fail."""

import hashlib
import logging
import os
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from django.db import connections

from machinequeue import conf
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.errors import Ambiguous, MachinesError, RateLimited, Unauthorized
from machinequeue.machines.schema import CreateRequest
from machinequeue.records import Machine, machines, queues, sql
from machinequeue.telemetry import emit

logger = logging.getLogger("machinequeue.dispatch")

TOKEN = "FLY_API_TOKEN"  # noqa: S105 - a variable's name
SECRETS_AGE = 60.0
"""Seconds for which the names of the app's secrets are believed."""
LONGEST_PAUSE = 60.0
TOKEN_PAUSE = 30.0


@lru_cache(maxsize=1)
def site() -> str:
    """Who we are among those who may share a Fly app: a hash of where our tables are. Machines carry it as metadata."""
    database = connections.databases[sql.alias()]
    where = "|".join(str(database.get(key, "")) for key in ("ENGINE", "HOST", "PORT", "NAME"))
    return hashlib.sha256(where.encode()).hexdigest()[:12]


@dataclass
class Launcher:
    """Creates machines through one client; shared by the threads of a dispatcher."""

    client: MachinesClient
    base: dict[str, Any] = field(default_factory=dict, repr=False)
    """The env of the dispatcher's own machine, on Fly."""
    _secrets: tuple[float, list[str]] = field(default=(-SECRETS_AGE, []), repr=False)

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
        """Make the create call of a reserved machine, unless another dispatcher does. True when it exists now."""
        if not machines.requesting(machine):
            return False
        request = self._request(machine)
        try:
            created = self.client.create(request)
        except Ambiguous as error:
            # Whether it exists is unknown: the row stays reserved, and the same name is asked for again later.
            queues.launch_failed(
                machine, f"Fly did not answer: {error.message}", pause_seconds=self._pause(machine, error)
            )
            emit("machine.unreachable", machine=machine.name, error=str(error))
            return False
        except MachinesError as error:
            self._refused(machine, error)
            return False
        machines.created(
            machine, fly_id=created.id, region=created.region, state=created.state, request_ids=[created.request_id]
        )
        queues.launched(machine)
        emit("machine.created", machine=machine.name, fly_id=created.id, queue=machine.queue, region=created.region)
        return True

    def _refused(self, machine: Machine, error: MachinesError) -> None:
        reason = f"no machine could be created ({type(error).__name__}): {error.message}. {error.advice}"
        machines.refused(machine, reason, [error.request_id] if error.request_id else [])
        queues.launch_failed(machine, reason, pause_seconds=self._pause(machine, error))
        emit("machine.refused", machine=machine.name, queue=machine.queue, error=str(error))

    def _pause(self, machine: Machine, error: MachinesError) -> float:
        if isinstance(error, RateLimited):
            return error.retry_after or 1.0
        doubled = min(2.0 ** queues.failures(machine), LONGEST_PAUSE)
        return max(doubled, TOKEN_PAUSE) if isinstance(error, Unauthorized) else doubled

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
        names = self._app_secrets()
        if TOKEN in names:
            config["processes"] = [
                {
                    "cmd": command,
                    "ignore_app_secrets": True,
                    "secrets": [{"env_var": name, "name": name} for name in names if name != TOKEN],
                }
            ]
        return CreateRequest(name=machine.name, region=",".join(spec["regions"]) or None, config=config)

    def _env(self, machine: Machine) -> dict[str, str]:
        settings = conf.settings()
        inherited = {key: value for key, value in self.base.items() if key != TOKEN}
        return {
            "DJANGO_SETTINGS_MODULE": os.environ["DJANGO_SETTINGS_MODULE"],
            **inherited,
            **settings.env,
            "FLY_PROCESS_GROUP": settings.process_group,
            "MACHINEQUEUE_MACHINE": machine.name,
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
        read_at, names = self._secrets
        if time.monotonic() - read_at < SECRETS_AGE:
            return names
        try:
            names = self.client.secrets()
        except MachinesError as error:
            # Launching with the token among the app's secrets is what Fly does by default; the runner drops it too.
            logger.warning("The names of the app's secrets could not be read: %s", error)
        self._secrets = (time.monotonic(), names)
        return names
