"""The server: routes, start, graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from machinequeue.machines.emulator import app_calls, lease_calls, machine_calls
from machinequeue.machines.emulator.calls import Handler
from machinequeue.machines.emulator.control import Control
from machinequeue.machines.emulator.exchanges import Office, bare, direct, endpoint, page_not_found
from machinequeue.machines.emulator.faults import Faults
from machinequeue.machines.emulator.ground import Ground
from machinequeue.machines.emulator.images import Images
from machinequeue.machines.emulator.journal import Journal
from machinequeue.machines.emulator.limits import Limits
from machinequeue.machines.emulator.loopback import Addresses, listen
from machinequeue.machines.emulator.options import Options
from machinequeue.machines.emulator.org_calls import org_machines, placements
from machinequeue.machines.emulator.world import World

GOODBYE_SECONDS = 5.0

APP = "/v1/apps/{app}"
MACHINES = f"{APP}/machines"
MACHINE = f"{MACHINES}/{{machine}}"
METADATA = f"{MACHINE}/metadata"

# method, path, handler, action: what rate limits and faults know it by
ROUTES: tuple[tuple[str, str, Handler, str], ...] = (
    ("GET", "/v1/apps", app_calls.find, "app-list"),
    ("POST", "/v1/apps", app_calls.create, "app-create"),
    ("GET", APP, app_calls.get, "app-get"),
    ("DELETE", APP, app_calls.delete, "app-delete"),
    ("GET", f"{APP}/secrets", app_calls.secrets, "secret-get"),
    ("POST", f"{APP}/secrets", app_calls.set_secrets, "secret-set"),
    ("GET", f"{APP}/secrets/{{name}}", app_calls.secret, "secret-get"),
    ("POST", f"{APP}/secrets/{{name}}", app_calls.set_secret, "secret-set"),
    ("DELETE", f"{APP}/secrets/{{name}}", app_calls.unset_secret, "secret-set"),
    ("GET", MACHINES, machine_calls.find, "list"),
    ("POST", MACHINES, machine_calls.create, "create"),
    ("GET", MACHINE, machine_calls.get, "get"),
    ("POST", MACHINE, machine_calls.update, "update"),
    ("DELETE", MACHINE, machine_calls.destroy, "destroy"),
    ("POST", f"{MACHINE}/exec", machine_calls.execute, "exec"),
    ("POST", f"{MACHINE}/cordon", machine_calls.cordon, "cordon"),
    ("POST", f"{MACHINE}/uncordon", machine_calls.uncordon, "uncordon"),
    ("GET", f"{MACHINE}/lease", lease_calls.get, "lease-get"),
    ("POST", f"{MACHINE}/lease", lease_calls.create, "lease"),
    ("DELETE", f"{MACHINE}/lease", lease_calls.release, "lease-release"),
    ("POST", f"{MACHINE}/start", machine_calls.start, "start"),
    ("POST", f"{MACHINE}/stop", machine_calls.stop, "stop"),
    ("POST", f"{MACHINE}/restart", machine_calls.restart, "restart"),
    ("POST", f"{MACHINE}/signal", machine_calls.signal, "signal"),
    ("GET", "/v1/orgs/{org}/machines", org_machines, "org-list"),
    ("POST", "/v1/platform/placements", placements, "placements"),
    ("GET", f"{MACHINE}/wait", machine_calls.wait, "wait"),
    ("GET", f"{MACHINE}/events", machine_calls.events, "events"),
    ("GET", METADATA, machine_calls.read_metadata, "metadata-get"),
    ("PATCH", METADATA, machine_calls.merge_metadata, "metadata-set"),
    ("PUT", METADATA, machine_calls.merge_metadata, "metadata-set"),
    ("GET", f"{METADATA}/{{key}}", machine_calls.read_entry, "metadata-get"),
    ("POST", f"{METADATA}/{{key}}", machine_calls.write_entry, "metadata-set"),
    ("DELETE", f"{METADATA}/{{key}}", machine_calls.remove_entry, "metadata-set"),
    ("GET", "/api/v1/apps/{app}/logs", app_calls.logs, "logs"),
    ("GET", "/v1/tokens/current", app_calls.current_token, "token"),
    ("GET", "/v1/platform/regions", app_calls.platform_regions, "regions"),
)

# Of Fly's API, but not of the emulator: method, path.
MISSING: tuple[tuple[str, str], ...] = (
    *(("POST", f"{MACHINE}/{verb}") for verb in ("suspend", "memory/reclaim")),
    *(("GET", f"{MACHINE}/{noun}") for noun in ("versions", "ps", "memory")),
    ("PUT", f"{MACHINE}/memory"),
    *(
        (method, f"{APP}/{part}")
        for part in ("volumes", "certificates", "ip_assignments")
        for method in ("GET", "POST")
    ),
    *(
        (method, f"{APP}/{part}/{{rest:path}}")
        for part in ("volumes", "certificates", "ip_assignments", "secretkeys")
        for method in ("GET", "POST", "PUT", "DELETE")
    ),
    ("GET", f"{APP}/secretkeys"),
    ("POST", f"{APP}/deploy_token"),
    ("GET", "/v1/orgs/{org}/volumes"),
    *(("POST", f"/v1/tokens/{verb}") for verb in ("authenticate", "authorize", "kms", "oidc")),
)


def build(office: Office) -> Starlette:
    """The ASGI application."""
    routes = [Route(path, endpoint(office, handler, action), methods=[verb]) for verb, path, handler, action in ROUTES]
    routes += [Route(path, endpoint(office, app_calls.missing, ""), methods=[verb]) for verb, path in MISSING]
    control = Control(office.faults, (action for *_, action in ROUTES))
    routes += [Route(path, direct(office, handler), methods=[verb]) for verb, path, handler in control.routes]
    for route in routes:
        (route.methods or set()).discard("HEAD")  # Starlette adds it; a wrong method is a path that is not there
    refused = {404: page_not_found, 405: page_not_found}
    application = Starlette(routes=routes, exception_handlers=refused)
    application.router.redirect_slashes = False
    return application


class _Server(uvicorn.Server):
    """Says when it accepts, and ends when its host or, if so asked, its standard input ends."""

    def __init__(self, config: uvicorn.Config, options: Options, office: Office) -> None:
        super().__init__(config)
        self._options = options
        self._world = office.world
        self._faults = office.faults
        self._host = office.world.ground.host

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._host, self._end, "the process that forks machines ended")
        if self._options.watch_stdin:
            loop.add_reader(sys.stdin.fileno(), self._end, "")
        port = sockets[0].getsockname()[1] if sockets else self._options.port
        if self._options.port_file:
            _write_whole(self._options.port_file, f"{port}\n")
        sys.stdout.write(f"emulator ready on http://127.0.0.1:{port}\n")
        sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._faults.close()
        # The machines first: whoever waits for one gets an answer instead of a broken connection.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._world.end()
        await super().shutdown(sockets)
        self._world.ground.journal.close()
        self._world.ground.addresses.close()

    def _end(self, reason: str) -> None:
        if reason:
            sys.stderr.write(f"emulator: {reason}\n")
            asyncio.get_running_loop().remove_reader(self._host)
        elif os.read(sys.stdin.fileno(), 4096):
            return
        else:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        self.should_exit = True


def serve(options: Options, host: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    try:
        listener = listen(options.port, backlog=512)
    except OSError as error:
        sys.stderr.write(f"emulator: port {options.port} cannot be used ({error.strerror}); choose another, or 0\n")
        return 1
    ground = _ground(options, host)
    world = World(ground)
    for name in options.apps:
        world.create_app(name).set_secrets(options.secrets)
    office = Office(world, Limits(options.rate_limits), Faults(world), bare(options.token))
    config = uvicorn.Config(
        build(office),
        log_level="error",
        access_log=False,
        date_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=75,
        ws="none",
    )
    # uvicorn raises the signal that ended it again, for whom it interrupted. Here that is nobody.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _Server(config, options, office).run(sockets=[listener])
    return 0


def _ground(options: Options, host: socket.socket) -> Ground:
    ground = Ground(
        host=host,
        journal=Journal(options.state_dir / "emulator.jsonl"),
        images=Images(list(options.images), options.sandboxed),
        state_dir=options.state_dir,
        addresses=Addresses(),
        region=options.region,
        delays=options.boot_delays,
    )
    for directory in (ground.logs_dir, ground.home_dir, ground.files_dir):
        directory.mkdir(parents=True, exist_ok=True)
    return ground


def _write_whole(path: Path, text: str) -> None:
    # Whoever polls for the file must never read half of it.
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text, encoding="ascii")
    draft.replace(path)
