"""All apps, their secrets and their machines."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from machinequeue.machines.emulator import configs, names
from machinequeue.machines.emulator.answers import (
    Refusal,
    app_not_found,
    bad_request,
    machine_not_found,
    manifest_unknown,
    name_violation,
)
from machinequeue.machines.emulator.ground import Ground
from machinequeue.machines.emulator.machine import Machine, Owner
from machinequeue.machines.emulator.regions import resolve

KEPT_DESTROYED = 2000
ORGANIZATION = "personal"

_SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class App(Owner):
    """Machines in the order of their creation; a destroyed one stays readable until 2000 younger ones are destroyed."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.created_ms = names.now_ms()
        self.secrets: dict[str, str] = {}
        self.secrets_version = 0
        self.machines: dict[str, Machine] = {}
        self._world = world
        self._by_name: dict[str, Machine] = {}
        self._destroyed: list[str] = []

    def create_machine(self, body: Mapping[str, Any]) -> Machine:
        """Make and launch a machine as a create call asks."""
        ground = self._world.ground
        config = configs.checked(body.get("config"))
        region = resolve(body.get("region"), ground.region)
        name = self._free_name(body.get("name"))
        image = ground.images.find(config["image"])
        if image is None:
            raise manifest_unknown(config["image"])
        machine = Machine(
            ground,
            self,
            image,
            config,
            name=name,
            region=region,
            private_ip=self._world.next_address(),
            skip_secrets=bool(body.get("skip_secrets")),
        )
        self.machines[machine.id] = self._by_name[name] = machine
        machine.launch(boot=not body.get("skip_launch"))
        return machine

    def machine(self, machine_id: str) -> Machine:
        """The machine, destroyed or not."""
        found = self.machines.get(machine_id)
        if found is None:
            raise machine_not_found()
        return found

    def forget(self, machine: Machine) -> None:
        """See Owner."""
        self._by_name.pop(machine.name, None)
        self._destroyed.append(machine.id)
        if len(self._destroyed) > KEPT_DESTROYED:
            self.machines.pop(self._destroyed.pop(0), None)

    def set_secrets(self, changes: Mapping[str, str | None]) -> None:
        """Set values, or remove those of None; machines see them at their next boot."""
        for name, value in changes.items():
            if not _SECRET_NAME.fullmatch(name) or not (value is None or isinstance(value, str)):
                raise bad_request(f"secret {name!r}: a name of letters, digits and _ with a text value is required")
        merged = {**self.secrets, **changes}
        self.secrets = {name: value for name, value in merged.items() if value is not None}
        self.secrets_version += 1

    def described_secret(self, name: str) -> dict[str, str]:
        """Name and digest, never the value."""
        digest = hashlib.sha256(self.secrets[name].encode()).hexdigest()[:16]
        return {"name": name, "digest": digest, "created_at": names.rfc3339(self.created_ms)}

    def described(self) -> dict[str, Any]:
        """The App object of the API."""
        living = len(self._by_name)
        return {
            "id": self.name,
            "name": self.name,
            "status": "deployed" if living else "pending",
            "machine_count": living,
            "volume_count": 0,
            "network": "default",
            "organization": {"name": ORGANIZATION, "slug": ORGANIZATION},
        }

    def destroy_everything(self) -> None:
        """Force-destroy what lives."""
        for machine in self.living():
            machine.destroy(force=True)

    def living(self) -> list[Machine]:
        """Every machine that is not destroyed."""
        return [*self._by_name.values()]

    def _free_name(self, name: object) -> str:
        if name is None or name == "":
            return names.machine_name()
        if not isinstance(name, str) or "\0" in name:
            raise bad_request("name must be a string")
        if name in self._by_name:
            raise name_violation(self._by_name[name].id, name)
        return name


class World:
    """The apps by name."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.apps: dict[str, App] = {}
        self._addresses = 0

    def app(self, name: str) -> App:
        """The app. Raises a Refusal when there is none."""
        found = self.apps.get(name)
        if found is None:
            raise app_not_found()
        return found

    def create_app(self, name: object) -> App:
        """A new app; names are global."""
        if not isinstance(name, str) or not names.is_app_name(name):
            raise Refusal(422, f"Validation failed: Name {name!r} may have lower-case letters, digits and dashes")
        if name in self.apps:
            raise Refusal(422, "Validation failed: Name has already been taken", "name_taken")
        self.apps[name] = App(self, name)
        return self.apps[name]

    def delete_app(self, name: str) -> None:
        """Delete the app with its machines."""
        self.app(name).destroy_everything()
        del self.apps[name]

    def next_address(self) -> str:
        """An address of its own for a machine."""
        self._addresses += 1
        return names.address(self._addresses)

    async def end(self) -> None:
        """Destroy every machine, and wait until the last is gone."""
        living = [machine for app in self.apps.values() for machine in app.living()]
        for machine in living:
            machine.destroy(force=True)
        for machine in living:
            await machine.wait(["destroyed"], timeout_seconds=60)
