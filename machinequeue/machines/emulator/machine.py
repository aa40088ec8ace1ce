"""One emulated machine: its states, its events, who waits for it. See fly.io/docs/machines/machine-states."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from machinequeue.machines.emulator import configs, names
from machinequeue.machines.emulator.answers import failed_precondition, machine_not_found, wait_timeout
from machinequeue.machines.emulator.boot import Boot
from machinequeue.machines.emulator.ground import Ground
from machinequeue.machines.emulator.history import History, exit_event
from machinequeue.machines.emulator.images import Image
from machinequeue.machines.emulator.output import Output

SETTLED = frozenset({"started", "stopped", "suspended", "failed", "destroyed"})
AT_REST = frozenset({"stopped", "suspended", "failed"})
RESTART_WINDOW_SECONDS = 300.0
LONGEST_BACKOFF_SECONDS = 5.0


class Owner:
    """What a machine asks of its app: `name`, and the secrets as they are at each boot."""

    name: str
    secrets: Mapping[str, str]

    def forget(self, machine: Machine) -> None:
        """The machine is destroyed; its name is free."""


class Machine:
    """Lives in the event loop; every method is one step and never blocks. Raises Refusals."""

    def __init__(
        self,
        ground: Ground,
        owner: Owner,
        image: Image,
        config: dict[str, Any],
        *,
        name: str,
        region: str,
        private_ip: str,
        skip_secrets: bool = False,
    ) -> None:
        self.id = names.machine_id()
        self.name = name
        self.region = region
        self.private_ip = private_ip
        self.config = config
        self.image = image
        self.instance_id = names.ulid()
        self.state = "created"
        self.created_ms = self.updated_ms = names.now_ms()
        self.output = Output(ground.logs_dir / f"{self.id}.log")
        self.history = History(ground.journal, self.id, name)
        self._ground = ground
        self._owner = owner
        self._skip_secrets = skip_secrets
        self._boot: Boot | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._restarts: list[float] = []
        self._waiters: list[tuple[frozenset[str], asyncio.Future[str]]] = []

    # -- what a caller may ask ------------------------------------------------------------------------------------

    def launch(self, boot: bool) -> None:
        """The first step after creation: boot, or prepare the disk and rest."""
        self.history.add("launch", "created", "user")
        if boot:
            self._boot_now()
        asyncio.get_running_loop().call_soon(self._leave_created, "starting" if boot else "stopped")

    def start(self) -> str:
        """Boot a machine that rests; returns the state before."""
        if self.state in ("started", "starting", "stopping", "restarting"):
            raise failed_precondition("machine still active, refusing to start")
        if self.state not in AT_REST:
            raise failed_precondition(f"unable to start machine from current state: '{self.state}'")
        before = self.state
        self._restarts.clear()
        self._enter("starting")
        self._boot_now()
        return before

    def stop(self, number: int, grace_seconds: float) -> None:
        """Signal, then kill after the grace. A machine that rests already is fine."""
        if self.state in AT_REST:
            return
        if self.state == "restarting" and self._boot is None:
            self._cancel_retry()
            self._end_stopped()
            return
        if self._boot is None or self.state not in ("starting", "started", "stopping", "restarting"):
            raise failed_precondition(f"unable to stop machine from current state: '{self.state}'")
        self._enter("stopping")
        self._boot.stop(number, grace_seconds)

    def restart(self, number: int, grace_seconds: float) -> None:
        """Stop and boot again."""
        if self.state in AT_REST:
            self.start()
            return
        if self._boot is None or self.state != "started":
            raise failed_precondition(f"unable to restart machine from current state: '{self.state}'")
        self._enter("restarting")
        self._boot.stop(number, grace_seconds)

    def signal(self, number: int) -> None:
        """Signal the main process of a started machine."""
        if self.state != "started" or self._boot is None:
            raise failed_precondition(f"unable to signal machine from current state: '{self.state}'")
        self._boot.signal(number)

    def destroy(self, force: bool) -> None:
        """Destroy a machine that rests, any machine with `force`."""
        if self.state == "destroyed":
            raise machine_not_found()
        if self.state == "destroying":
            return
        if self.state not in AT_REST and not force:
            raise failed_precondition(f"unable to destroy machine from current state: '{self.state}'")
        self._cancel_retry()
        self.history.add("destroy", "destroying", "user")
        self._enter("destroying")
        if self._boot is not None:
            self._boot.kill()
        else:
            self._end_destroyed()

    async def wait(self, states: list[str], timeout_seconds: float) -> str:
        """The first of `states` that the machine enters; no state passes unseen, however short."""
        wanted = frozenset(states) | (SETTLED if "settled" in states else frozenset())
        if self.state in wanted:
            return self.state
        if self.state == "destroyed":
            raise machine_not_found()
        entry = (wanted, asyncio.get_running_loop().create_future())
        self._waiters.append(entry)
        try:
            return await asyncio.wait_for(entry[1], timeout_seconds)
        except TimeoutError:
            raise wait_timeout(", ".join(states), self.state) from None
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)

    def set_metadata(self, changes: Mapping[str, str | None]) -> None:
        """Merge; a value of None or "" removes its key."""
        if self.state in ("destroying", "destroyed"):
            raise machine_not_found()
        merged = {**(self.config.get("metadata") or {}), **changes}
        self.config["metadata"] = {key: value for key, value in merged.items() if value}
        self.updated_ms = names.now_ms()

    @property
    def metadata(self) -> dict[str, str]:
        """As it is now."""
        return dict(self.config.get("metadata") or {})

    def described(self, summary: bool = False) -> dict[str, Any]:
        """The Machine object of the API; a summary leaves out config, checks, events and host_status."""
        short = {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "region": self.region,
            "version": self.instance_id,
            "instance_id": self.instance_id,
            "private_ip": self.private_ip,
            "image_ref": self.image.described(),
            "created_at": names.rfc3339(self.created_ms),
            "updated_at": names.rfc3339(self.updated_ms),
        }
        if summary:
            return short
        return {**short, "config": self.config, "events": self.history.newest(50), "checks": [], "host_status": "ok"}

    # -- what a boot reports --------------------------------------------------------------------------------------

    def on_started(self, pid: int) -> None:
        """See Listener."""
        self.history.add("start", "started", "flyd", pid=pid)
        self.output.say(f"Machine started, main process {pid}")
        if self.state in ("created", "starting"):
            self._enter("started")

    def on_out_of_memory(self, pid: int) -> None:
        """See Listener."""
        self.output.say(f"Out of memory: Killed process {pid}")

    def on_ended(self, report: Mapping[str, Any]) -> None:
        """See Listener."""
        self._boot = None
        asked = self.state in ("stopping", "destroying", "restarting")
        again = self.state == "restarting" or (not asked and self._should_restart(report["exit"]))
        if again and not asked:
            self._restarts.append(time.monotonic())
        event = exit_event(report, requested_stop=asked, restarting=again)
        self.history.add("exit", "stopped", "flyd", exit_event=event, restart_count=len(self._restarts))
        self.output.say(f"Main child exited with code: {report['exit']}")
        if self.state == "destroying":
            self._end_destroyed()
        elif again:
            self._boot_later(0.0 if asked else min(0.1 * 2 ** len(self._restarts), LONGEST_BACKOFF_SECONDS))
        else:
            self._end_stopped()

    # -- steps ----------------------------------------------------------------------------------------------------

    def _leave_created(self, state: str) -> None:
        if self.state == "created":
            self._enter(state)

    def _boot_now(self) -> None:
        secrets = {} if self._skip_secrets else self._owner.secrets
        order = {
            "argv": self.image.command(configs.command_of(self.config)),
            "env": {
                "PATH": self.image.search_path,
                "HOME": str(self._ground.home_dir),
                "LANG": "C.UTF-8",
                **configs.environment_of(self.config, secrets),
                **self._platform_environment(),
            },
            "cwd": str(self.image.directory),
            "memory_mb": configs.guest_of(self.config).memory_mb,
        }
        self._boot = Boot(self._ground.host, order, self.output, self)

    def _platform_environment(self) -> dict[str, str]:
        return {
            "FLY_APP_NAME": self._owner.name,
            "FLY_MACHINE_ID": self.id,
            "FLY_ALLOC_ID": self.id,
            "FLY_REGION": self.region,
            "FLY_IMAGE_REF": self.config["image"],
            "FLY_PRIVATE_IP": self.private_ip,
            "FLY_MACHINE_VERSION": self.instance_id,
            "FLY_VM_MEMORY_MB": str(configs.guest_of(self.config).memory_mb),
        }

    def _should_restart(self, code: int) -> bool:
        policy, retries = configs.restart_of(self.config)
        recent = [at for at in self._restarts if time.monotonic() - at < RESTART_WINDOW_SECONDS]
        return policy == "always" or (policy == "on-failure" and code != 0 and len(recent) < retries)

    def _boot_later(self, delay_seconds: float) -> None:
        self._enter("restarting")
        self._retry = asyncio.get_running_loop().call_later(delay_seconds, self._boot_again)

    def _boot_again(self) -> None:
        self._retry = None
        self._enter("starting")
        self._boot_now()

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _end_stopped(self) -> None:
        # With auto_destroy Fly hardly ever shows "stopped", so a caller must not come to rely on it.
        if not self.config.get("auto_destroy"):
            self._enter("stopped")
            return
        self._enter("destroying")
        self._end_destroyed()

    def _end_destroyed(self) -> None:
        self.history.add("destroy", "destroyed", "flyd")
        self._owner.forget(self)
        self._enter("destroyed")

    def _enter(self, state: str) -> None:
        self.state = state
        self.updated_ms = names.now_ms()
        for wanted, future in [*self._waiters]:
            if future.done():
                continue
            if state in wanted:
                future.set_result(state)
            elif state == "destroyed":
                future.set_exception(machine_not_found())
