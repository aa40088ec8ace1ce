"""One emulated machine: its states, its events, who waits for it. See fly.io/docs/machines/machine-states."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from machinequeue.machines.emulator import configs, executions, names
from machinequeue.machines.emulator.answers import (
    failed_precondition,
    host_unreachable,
    lease_not_found,
    machine_not_found,
    wait_timeout,
)
from machinequeue.machines.emulator.boot import Boot
from machinequeue.machines.emulator.ground import Ground
from machinequeue.machines.emulator.history import History, exit_event
from machinequeue.machines.emulator.images import Image
from machinequeue.machines.emulator.leases import Lease, Leases
from machinequeue.machines.emulator.orders import Booted, order_of
from machinequeue.machines.emulator.output import Output

SETTLED = frozenset({"started", "stopped", "suspended", "failed", "destroyed"})
AT_REST = frozenset({"stopped", "suspended", "failed"})
ENDED_BY_STOP = frozenset({"starting", "started", "stopping", "restarting", "replacing"})
RESTART_WINDOW_SECONDS = 300.0
LONGEST_BACKOFF_SECONDS = 5.0
HOST_LOST_CODE = 137
KNOWN_OF_A_LOST_HOST = ("metadata", "image", "guest")


class Owner:
    """What a machine asks of its app: `name`, the secrets as they are at each boot, an address after a move."""

    name: str
    secrets: Mapping[str, str]
    secrets_version: int

    def forget(self, machine: Machine) -> None:
        """The machine is destroyed; its name is free."""

    def next_address(self) -> str:
        """An address that no machine has."""
        raise NotImplementedError


class Machine:
    """Lives in the event loop; every method is one step and never blocks, but `wait` and `execute`. Raises Refusals."""

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
        launch: configs.Launch,
    ) -> None:
        self.id = names.machine_id()
        self.name = name
        self.region = region
        self.private_ip = private_ip
        self.config = config
        self.image = image
        self.instance_id = names.ulid()
        self.state = "created"
        self.cordoned = launch.cordoned
        self.leases = Leases()
        self.created_ms = self.updated_ms = names.now_ms()
        self.output = Output(ground.logs_dir / f"{self.id}.log")
        self.history = History(ground.journal, self.id, name)
        self._ground = ground
        self._owner = owner
        self._launch = launch
        self._awaits_secrets = False
        self._boot: Boot | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._migrating = False
        self._host_lost = False
        self._restarts: list[float] = []
        self._waiters: list[tuple[frozenset[str], asyncio.Future[str]]] = []

    # -- what a caller may ask ------------------------------------------------------------------------------------

    def launch(self) -> None:
        """The first step after creation: boot, or prepare the disk and rest."""
        boot = self._launch.boot
        self.history.add("launch", "created", "user")
        delay_seconds = self._ground.delays.draw("create")
        if delay_seconds:
            self._later(delay_seconds, self._prepared)
            return
        if boot:
            self._boot_now()
        asyncio.get_running_loop().call_soon(self._leave_created, "starting" if boot else "stopped")

    def start(self) -> str:
        """Boot a machine that rests; returns the state before."""
        self._need_host()
        if self.state in ("started", "starting", "stopping", "restarting"):
            raise failed_precondition("machine still active, refusing to start")
        if self.state == "replacing":
            raise failed_precondition("machine getting replaced, refusing to start")
        if self.state not in AT_REST:
            raise failed_precondition(f"unable to start machine from current state: '{self.state}'")
        before = self.state
        self._restarts.clear()
        self._boot_soon()
        return before

    def stop(self, number: int, grace_seconds: float) -> None:
        """Signal, then kill after the grace. A machine that rests already is fine."""
        self._need_host()
        if self.state in AT_REST:
            return
        self._migrating = False
        if self.state in ("starting", "restarting") and self._boot is None:
            self._cancel_pending()
            self._end_stopped()
            return
        if self._boot is None or self.state not in ENDED_BY_STOP:
            raise failed_precondition(f"unable to stop machine from current state: '{self.state}'")
        self._enter("stopping")
        self._boot.stop(number, grace_seconds)

    def restart(self, number: int, grace_seconds: float) -> None:
        """Stop and boot again."""
        self._need_host()
        if self.state in AT_REST:
            self.start()
            return
        if self._boot is None or self.state != "started":
            raise failed_precondition(f"unable to restart machine from current state: '{self.state}'")
        self._enter("restarting")
        self._boot.stop(number, grace_seconds)

    def update(self, image: Image, config: dict[str, Any], launch: configs.Launch) -> None:
        """Take a new config: a machine that runs is booted anew, one that rests boots; without `launch.boot` neither,
        and what runs goes on as it was begun."""
        self._need_host()
        running = self.state == "started" and self._boot is not None
        if not running and self.state not in AT_REST:
            raise failed_precondition(f"unable to update machine from current state: '{self.state}'")
        how_to_stop = configs.stop_of(self.config, {})
        self.image, self.config, self._launch = image, config, launch
        self.cordoned = self.cordoned or launch.cordoned
        self.instance_id = names.ulid()
        self.updated_ms = names.now_ms()
        self.history.add("update", "replacing", "user")
        self._restarts.clear()
        if launch.boot and self._boot is not None:
            self._enter("replacing")
            self._boot.stop(*how_to_stop)
        elif launch.boot:
            self._boot_soon()

    def signal(self, number: int) -> None:
        """Signal the processes of a started machine."""
        self._started_boot("signal").signal(number)

    async def execute(self, argv: list[str], stdin: str, seconds: float) -> Any:
        """Run one more command in a started machine; the answer of the exec call."""
        boot = self._started_boot("exec on")
        argv = self.image.command(argv)
        answer = await executions.execute(boot.execute, boot.end_execution, argv, stdin, seconds)
        self._need_host()  # which may have been lost meanwhile, and the outcome with it
        return answer

    def acquire_lease(self, ttl: int, description: str, nonce: str = "") -> Lease:
        """See Leases."""
        if self.state == "destroyed":
            raise machine_not_found()
        return self.leases.acquire(ttl, description, self.instance_id, nonce)

    def lease(self) -> Lease:
        """The lease that holds now."""
        if self.leases.current is None:
            raise lease_not_found()
        return self.leases.current

    def secrets_changed(self) -> None:
        """Boot, when that was only waiting for a later version of the secrets."""
        if self._awaits_secrets:
            self._awaits_secrets = False
            self._boot_now()

    def destroy(self, force: bool) -> None:
        """Destroy a machine that rests, any machine with `force`."""
        if self.state == "destroyed":
            raise machine_not_found()
        if self.state == "destroying":
            return
        if self.state not in AT_REST and not force:
            raise failed_precondition(f"unable to destroy machine from current state: '{self.state}'")
        if not force:
            self._need_host()
        self._cancel_pending()
        self.history.add("destroy", "destroying", "user")
        self._enter("destroying")
        if self._boot is not None:
            self._boot.kill()
        else:
            self._end_destroyed()

    async def wait(self, states: list[str], timeout_seconds: float | None) -> str:
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
        self._need_host()
        merged = {**(self.config.get("metadata") or {}), **changes}
        self.config["metadata"] = {key: value for key, value in merged.items() if value}
        self.updated_ms = names.now_ms()

    def set_cordoned(self, cordoned: bool) -> None:
        """Whether a proxy shall pass it by."""
        if self.state == "destroyed":
            raise machine_not_found()
        self._need_host()
        self.cordoned = cordoned
        self.updated_ms = names.now_ms()

    @property
    def metadata(self) -> dict[str, str]:
        """As it is now."""
        return dict(self.config.get("metadata") or {})

    def described(self, summary: bool = False, with_lease: bool = False) -> dict[str, Any]:
        """The Machine object of the API; a summary leaves out config, checks, events and host_status."""
        short: dict[str, Any] = {
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
            "cordoned": self.cordoned,
        }
        if with_lease and self.leases.current:
            short["lease"] = self.leases.current.stripped()
        if summary:
            return short
        return {**short, **self._described_by_host(), "events": self.history.newest(50), "checks": []}

    def _described_by_host(self) -> dict[str, Any]:
        if self._host_lost:
            known = {name: self.config[name] for name in KNOWN_OF_A_LOST_HOST if name in self.config}
            return {"host_status": "unreachable", "config": None, "incomplete_config": known}
        return {"host_status": "ok", "config": self.config}

    # -- what may befall it ---------------------------------------------------------------------------------------

    def vanish(self) -> None:
        """Lose the host: everything in it dies unreported, the state stays as it was known."""
        if self.state in ("destroying", "destroyed"):
            raise machine_not_found()
        self._host_lost = True
        self._migrating = False
        self._cancel_pending()
        if self._boot is not None:
            self._boot.abandon()
            self._boot = None
        self.updated_ms = names.now_ms()

    def return_host(self) -> None:
        """The host is back, and what was to run there does not: stopped, or destroyed with auto_destroy."""
        if not self._host_lost:
            raise failed_precondition("machine's host is not lost")
        self._host_lost = False
        self.updated_ms = names.now_ms()
        if self.state in AT_REST or self.state in ("destroying", "destroyed"):
            return
        if self.state != "created":
            report = {"exit": HOST_LOST_CODE, "signal": -1, "oom": False}
            event = exit_event(report, requested_stop=False, restarting=False)
            self.history.add("exit", "stopped", "flyd", exit_event=event, restart_count=len(self._restarts))
        self._end_stopped()

    def migrate(self) -> None:
        """Move to another host: stopped as by a stop, booted again with the same id and another address."""
        self._need_host()
        if self.state in AT_REST:
            self._arrive()
            return
        if self.state != "started" or self._boot is None:
            raise failed_precondition(f"unable to migrate machine from current state: '{self.state}'")
        self._migrating = True
        self._enter("stopping")
        self._boot.stop(*configs.stop_of(self.config, {}))

    def run_out_of_memory(self) -> None:
        """Have the biggest process killed as if it had gone over the machine's memory."""
        self._started_boot("exhaust").run_out_of_memory()

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
        asked = self.state in ("stopping", "destroying", "restarting", "replacing")
        again = self.state == "restarting" or (not asked and self._should_restart(report["exit"]))
        if again and not asked:
            self._restarts.append(time.monotonic())
        event = exit_event(report, requested_stop=asked, restarting=again)
        self.history.add("exit", "stopped", "flyd", exit_event=event, restart_count=len(self._restarts))
        self.output.say(f"Main child exited with code: {report['exit']}")
        if self.state == "destroying":
            self._end_destroyed()
        elif self._migrating:
            self._migrating = False
            self._arrive()
            self._boot_soon()
        elif self.state == "replacing":
            self._boot_soon()
        elif again:
            self._boot_later(0.0 if asked else min(0.1 * 2 ** len(self._restarts), LONGEST_BACKOFF_SECONDS))
        else:
            self._end_stopped()

    # -- steps ----------------------------------------------------------------------------------------------------

    def _leave_created(self, state: str) -> None:
        if self.state == "created":
            self._enter(state)

    def _need_host(self) -> None:
        if self._host_lost:
            raise host_unreachable()

    def _started_boot(self, deed: str) -> Boot:
        self._need_host()
        if self.state != "started" or self._boot is None:
            raise failed_precondition(f"unable to {deed} machine from current state: '{self.state}'")
        return self._boot

    def _prepared(self) -> None:
        self._enter("starting" if self._launch.boot else "stopped")
        if self._launch.boot:
            self._boot_now()

    def _arrive(self) -> None:
        self.private_ip = self._owner.next_address()
        self.history.add("launch", "created", "flyd")
        self.updated_ms = names.now_ms()

    def _boot_soon(self) -> None:
        """Enter `starting`, and boot once the delay of a start is over."""
        self._enter("starting")
        delay_seconds = self._ground.delays.draw("start")
        if delay_seconds:
            self._later(delay_seconds, self._boot_now)
        else:
            self._boot_now()

    def _boot_now(self) -> None:
        if self._owner.secrets_version < self._launch.min_secrets_version:
            self._awaits_secrets = True
            return
        app_secrets = self._owner.secrets
        secrets = {} if self._launch.skip_secrets else app_secrets
        boot = Booted(self.image, self.config, secrets, app_secrets, self._platform_environment())
        self._boot = Boot(self._ground.host, order_of(self._ground, boot, self.output.say), self.output, self)

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
        self._later(delay_seconds, self._boot_soon)

    def _later(self, delay_seconds: float, step: Callable[..., None], *arguments: Any) -> None:
        def act() -> None:
            self._timer = None
            step(*arguments)

        self._timer = asyncio.get_running_loop().call_later(delay_seconds, act)

    def _cancel_pending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._awaits_secrets = False

    def _end_stopped(self) -> None:
        # With auto_destroy Fly hardly ever shows "stopped", so a caller must not come to rely on it.
        if not self.config.get("auto_destroy"):
            self._enter("stopped")
            return
        self._enter("destroying")
        self._end_destroyed()

    def _end_destroyed(self) -> None:
        self.history.add("destroy", "destroyed", "flyd")
        self.leases.end()
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
