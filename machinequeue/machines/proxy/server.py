"""The server: start, the fleets by app, graceful end."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator.exchanges import EDGE_AGENT
from machinequeue.machines.emulator.journal import Journal
from machinequeue.machines.emulator.loopback import listen
from machinequeue.machines.proxy.door import Door, tunnels_of
from machinequeue.machines.proxy.fleet import Fleet, Manner
from machinequeue.machines.proxy.options import Options

THREADS = 8
MOST_FLEETS = 64


class Fleets:
    """A fleet for each app that was asked for. Those of the command line stay, of others the newest."""

    def __init__(self, options: Options, journal: Journal) -> None:
        self._options = options
        self._journal = journal
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="machines-api")
        self._manner = Manner(options.region, options.cache_seconds, options.idle_seconds, options.patience_seconds)
        self._fleets: dict[str, tuple[Fleet, asyncio.Task[None]]] = {}

    def of(self, app: str) -> Fleet:
        """The fleet of that app, watched from now on."""
        if app not in self._fleets:
            self._make_room()
            client = MachinesClient(
                app, token=self._options.token, base_url=self._options.api, timeout=10, user_agent=EDGE_AGENT
            )
            fleet = Fleet(app, client, self._manner, self._journal, self._threads)
            self._fleets[app] = fleet, asyncio.create_task(fleet.stop_the_idle())
        return self._fleets[app][0]

    async def say_problems(self) -> None:
        """Ask for each app of the command line once, and tell what the API says against it."""
        for app in self._options.apps:
            problem = await self.of(app).first_look()
            if problem is not None:
                journal = self._options.state_dir / "edge.jsonl"
                sys.stderr.write(f"edge: app {app}: {problem}. {problem.advice} More of it will be in {journal}.\n")
                sys.stderr.flush()

    def _make_room(self) -> None:
        others = {app: fleet for app, (fleet, _) in self._fleets.items() if app not in self._options.apps}
        # An app that does not exist would be asked for again and again; one that is in use has to stay.
        gone = [app for app, fleet in others.items() if fleet.is_unknown and fleet.is_idle]
        for app in gone:
            self._close(app)
        idle = [app for app, fleet in others.items() if fleet.is_idle and app not in gone]
        if len(others) - len(gone) >= MOST_FLEETS and idle:
            self._close(idle[0])

    def _close(self, app: str) -> None:
        fleet, task = self._fleets.pop(app)
        task.cancel()
        fleet.close()

    def close(self) -> None:
        """Forget all."""
        for app in [*self._fleets]:
            self._close(app)
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Server(uvicorn.Server):
    """Says when it accepts, and ends when, if so asked, its standard input ends."""

    def __init__(self, config: uvicorn.Config, options: Options, door: Door, fleets: Fleets, journal: Journal) -> None:
        super().__init__(config)
        self._options = options
        self._door = door
        self._fleets = fleets
        self._journal = journal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._first_looks = asyncio.create_task(self._fleets.say_problems())
        if self._options.watch_stdin:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._end_with_stdin)
        port = sockets[0].getsockname()[1] if sockets else self._options.port
        sys.stdout.write(f"edge ready on http://127.0.0.1:{port}\n")
        sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._first_looks.cancel()
        self._fleets.close()
        await self._door.close()
        self._journal.close()

    def _end_with_stdin(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self.should_exit = True


def serve(options: Options) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    try:
        listener = listen(options.port, backlog=2048)
    except OSError as error:
        sys.stderr.write(f"edge: port {options.port} cannot be used ({error.strerror}); choose another, or 0\n")
        return 1
    _spare_a_search()
    # uvicorn raises the signal that ended it again, for whom it interrupted. Here that is nobody.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    journal = Journal(options.state_dir / "edge.jsonl")
    fleets = Fleets(options, journal)
    door = Door(
        fleets.of,
        journal,
        default_app=options.apps[0],
        region=options.region,
        patience_seconds=options.patience_seconds,
        verbose=options.verbose,
    )
    config = uvicorn.Config(
        door,
        http="h11",
        ws=tunnels_of(door),
        lifespan="off",
        interface="asgi3",
        log_level="critical",
        access_log=False,
        # Its headers are for proxies to set, and this is the first one: whoever calls is the client.
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=math.ceil(options.grace_seconds),
        timeout_keep_alive=75,
        backlog=2048,
    )
    _Server(config, options, door, fleets, journal).run(sockets=[listener])
    return 0


def _spare_a_search() -> None:
    # httpcore tries to import sniffio at each of its locks; where that is absent, every try searches the whole path,
    # which made up most of the time of a request. This process is the edge's own, so it may say "absent" once.
    if importlib.util.find_spec("sniffio") is None:
        sys.modules["sniffio"] = None  # type: ignore[assignment]
