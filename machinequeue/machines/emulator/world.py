"""All apps, their secrets and their machines."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from machinequeue.machines.emulator import configs, files, names
from machinequeue.machines.emulator.answers import (
    Refusal,
    app_not_found,
    bad_request,
    concurrent_update,
    machine_not_found,
    manifest_unknown,
    name_violation,
)
from machinequeue.machines.emulator.ground import Ground
from machinequeue.machines.emulator.images import Image
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
        launch = configs.launch_of(body)
        image = self._image_of(config)
        machine = Machine(
            ground,
            self,
            image,
            config,
            name=name,
            region=region,
            private_ip=self._world.next_address(),
            launch=launch,
        )
        self.machines[machine.id] = self._by_name[name] = machine
        machine.launch()
        return machine

    def update_machine(self, machine: Machine, body: Mapping[str, Any]) -> None:
        """Give a machine another config, as an update call asks."""
        config = configs.checked(body.get("config"))
        if body.get("name") not in (None, "", machine.name):
            raise bad_request(f"name cannot change, this machine is {machine.name!r}")
        if resolve(body.get("region"), machine.region) != machine.region:
            raise bad_request(f"region cannot change, this machine is in {machine.region!r}")
        launch = configs.launch_of(body)
        image = self._image_of(config)
        if body.get("current_version") not in (None, "", machine.instance_id):
            raise concurrent_update()
        machine.update(image, config, launch)

    def _image_of(self, config: Mapping[str, Any]) -> Image:
        """The image of a config whose files fit it."""
        image = self._world.ground.images.find(config["image"])
        if image is None:
            raise manifest_unknown(config["image"])
        files.check(config, self.secrets, None if image.walled else image.directory)
        return image

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

    def next_address(self) -> str:
        """See Owner."""
        return self._world.next_address()

    def set_secrets(self, changes: Mapping[str, str | None]) -> None:
        """Set values, or remove those of None; machines see them at their next boot."""
        for name, value in changes.items():
            if not _SECRET_NAME.fullmatch(name) or not (value is None or isinstance(value, str)):
                raise bad_request(f"secret {name!r}: a name of letters, digits and _ with a text value is required")
        merged = {**self.secrets, **changes}
        self.secrets = {name: value for name, value in merged.items() if value is not None}
        self.secrets_version += 1
        for machine in self.living():
            machine.secrets_changed()

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
    """The apps by name, and the name that each idempotency key made."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.apps: dict[str, App] = {}
        self.app_keys: dict[str, str] = {}

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
        return self.ground.addresses.next()

    async def end(self) -> None:
        """Destroy every machine, and wait until the last is gone."""
        living = [machine for app in self.apps.values() for machine in app.living()]
        for machine in living:
            machine.destroy(force=True)
        for machine in living:
            await machine.wait(["destroyed"], timeout_seconds=60)
