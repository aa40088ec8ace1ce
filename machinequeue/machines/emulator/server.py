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

from machinequeue.machines.emulator import app_calls, machine_calls
from machinequeue.machines.emulator.calls import Handler, Office, bare, endpoint, page_not_found
from machinequeue.machines.emulator.ground import Ground
from machinequeue.machines.emulator.images import Images
from machinequeue.machines.emulator.journal import Journal
from machinequeue.machines.emulator.limits import Limits
from machinequeue.machines.emulator.options import Options
from machinequeue.machines.emulator.world import World

GOODBYE_SECONDS = 5.0

APP = "/v1/apps/{app}"
MACHINES = f"{APP}/machines"
MACHINE = f"{MACHINES}/{{machine}}"
METADATA = f"{MACHINE}/metadata"

# method, path, handler, rate limit
ROUTES: tuple[tuple[str, str, Handler, str], ...] = (
    ("GET", "/v1/apps", app_calls.find, ""),
    ("POST", "/v1/apps", app_calls.create, ""),
    ("GET", APP, app_calls.get, ""),
    ("DELETE", APP, app_calls.delete, ""),
    ("GET", f"{APP}/secrets", app_calls.secrets, ""),
    ("POST", f"{APP}/secrets", app_calls.set_secrets, ""),
    ("GET", f"{APP}/secrets/{{name}}", app_calls.secret, ""),
    ("POST", f"{APP}/secrets/{{name}}", app_calls.set_secret, ""),
    ("DELETE", f"{APP}/secrets/{{name}}", app_calls.unset_secret, ""),
    ("GET", MACHINES, machine_calls.find, "list"),
    ("POST", MACHINES, machine_calls.create, "create"),
    ("GET", MACHINE, machine_calls.get, "get"),
    ("DELETE", MACHINE, machine_calls.destroy, "destroy"),
    ("POST", f"{MACHINE}/start", machine_calls.start, "start"),
    ("POST", f"{MACHINE}/stop", machine_calls.stop, "stop"),
    ("POST", f"{MACHINE}/restart", machine_calls.restart, "restart"),
    ("POST", f"{MACHINE}/signal", machine_calls.signal, "signal"),
    ("GET", f"{MACHINE}/wait", machine_calls.wait, "wait"),
    ("GET", f"{MACHINE}/events", machine_calls.events, "events"),
    ("GET", METADATA, machine_calls.read_metadata, "metadata-get"),
    ("PATCH", METADATA, machine_calls.merge_metadata, "metadata-set"),
    ("PUT", METADATA, machine_calls.merge_metadata, "metadata-set"),
    ("GET", f"{METADATA}/{{key}}", machine_calls.read_entry, "metadata-get"),
    ("POST", f"{METADATA}/{{key}}", machine_calls.write_entry, "metadata-set"),
    ("DELETE", f"{METADATA}/{{key}}", machine_calls.remove_entry, "metadata-set"),
    ("GET", "/api/v1/apps/{app}/logs", app_calls.logs, ""),
    ("GET", "/v1/tokens/current", app_calls.current_token, ""),
    ("GET", "/v1/platform/regions", app_calls.platform_regions, ""),
)

# Of Fly's API, but not of the emulator: method, path.
MISSING: tuple[tuple[str, str], ...] = (
    ("POST", MACHINE),
    *((method, f"{MACHINE}/lease") for method in ("GET", "POST", "DELETE")),
    *(("POST", f"{MACHINE}/{verb}") for verb in ("suspend", "cordon", "uncordon", "exec", "memory/reclaim")),
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
    ("GET", "/v1/orgs/{org}/machines"),
    ("GET", "/v1/orgs/{org}/volumes"),
    ("POST", "/v1/platform/placements"),
    *(("POST", f"/v1/tokens/{verb}") for verb in ("authenticate", "authorize", "kms", "oidc")),
)


def build(office: Office) -> Starlette:
    """The ASGI application."""
    routes = [Route(path, endpoint(office, handler, limit), methods=[verb]) for verb, path, handler, limit in ROUTES]
    routes += [Route(path, endpoint(office, app_calls.missing), methods=[verb]) for verb, path in MISSING]
    refused = {404: page_not_found, 405: page_not_found}
    return Starlette(routes=routes, exception_handlers=refused)


class _Server(uvicorn.Server):
    """Says when it accepts, and ends when its host or, if so asked, its standard input ends."""

    def __init__(self, config: uvicorn.Config, options: Options, world: World) -> None:
        super().__init__(config)
        self._options = options
        self._world = world
        self._host = world.ground.host

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
        # The machines first: whoever waits for one gets an answer instead of a broken connection.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._world.end()
        await super().shutdown(sockets)
        self._world.ground.journal.close()

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
        listener = _listen(options.port)
    except OSError as error:
        sys.stderr.write(f"emulator: port {options.port} cannot be used ({error.strerror}); choose another, or 0\n")
        return 1
    ground = _ground(options, host)
    world = World(ground)
    for name in options.apps:
        world.create_app(name).set_secrets(options.secrets)
    office = Office(world, Limits(options.rate_limits), bare(options.token))
    config = uvicorn.Config(
        build(office),
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=75,
        ws="none",
    )
    # uvicorn raises the signal that ended it again, for whom it interrupted. Here that is nobody.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _Server(config, options, world).run(sockets=[listener])
    return 0


def _listen(port: int) -> socket.socket:
    # The protocol is named because asyncio turns Nagle's algorithm off (40 ms an answer) only where it is.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(512)
    return listener


def _ground(options: Options, host: socket.socket) -> Ground:
    ground = Ground(
        host=host,
        journal=Journal(options.state_dir / "emulator.jsonl"),
        images=Images(list(options.images)),
        state_dir=options.state_dir,
        region=options.region,
    )
    for directory in (ground.logs_dir, ground.home_dir):
        directory.mkdir(parents=True, exist_ok=True)
    return ground


def _write_whole(path: Path, text: str) -> None:
    # Whoever polls for the file must never read half of it.
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text, encoding="ascii")
    draft.replace(path)
