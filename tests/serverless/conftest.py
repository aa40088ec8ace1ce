"""The world of the integration tests, with a web machine behind the local edge."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from django.db import connection

from machinequeue.machines.proxy import Edge
from machinequeue.machines.schema import CreateRequest, Machine
from machinequeue.models import ServerlessMachine
from tests.integration.conftest import tables
from tests.waiting import until
from tests.world import APP, IMAGE, World, world

__all__ = ["tables"]

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 120.0
ANSWERED = "answered"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SERVICE = {"protocol": "tcp", "internal_port": 8080, "ports": [{"port": 80, "handlers": ["http"]}]}
GUNICORN = ["python", "-m", "gunicorn", "--bind", "{bind}", "--threads", "8", "tests.serverless.site.wsgi"]
UVICORN = ["python", "-m", "uvicorn", "--host", "{host}", "--port", "{port}", "tests.serverless.site.asgi:application"]


class Site:
    """A site of one web machine, and whatever serverless machines a dispatcher makes, behind an edge."""

    def __init__(self, world: World, edge: Edge, gates: "Gates") -> None:
        self.world = world
        self.edge = edge
        self.gates = gates
        self.http = httpx.Client(base_url=edge.url, timeout=DEADLINE)
        self._answered = world.root / ANSWERED
        self._numbers = itertools.count(1)
        self._once: set[str] = set()

    def web(self, name: str = "web-1", command: list[str] = GUNICORN, **env: str) -> Machine:
        """A web machine as `fly deploy` makes one; returns when it answers."""
        config = {
            "image": IMAGE,
            "init": {"cmd": ["python", "-m", "machinequeue.serverless", *command]},
            "restart": {"policy": "no"},
            "stop_config": {"signal": "SIGTERM", "timeout": "20s"},
            "services": [{**SERVICE, "min_machines_running": 1}],
            "env": env,
        }
        with self.world.emulator.client() as client:
            made = client.create(CreateRequest(name, "iad", config))
            until(lambda: self.answers(made.private_ip), DEADLINE, self.said)
            return client.get(made.id)

    @staticmethod
    def answers(private_ip: str) -> bool:
        try:
            return httpx.get(f"http://{private_ip}:8080/ht/ready/", timeout=DEADLINE).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, path: str = "/listed/", **options: Any) -> dict[str, Any]:
        """What a request told that came through the edge; every request has to succeed."""
        answer = self.http.request(options.pop("method", "GET"), path, **options)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}\n{self.said()}"
        told: dict[str, Any] = answer.json()
        return told

    def burst(self, count: int = 200, path: str = "/listed/", *, once: bool = True, **options: Any) -> "Counter[str]":
        """So many requests at once, each on a connection of its own; how many each machine answered.

        Every one has to succeed, with the answer to itself, and after `once` no view was called twice for it.
        """
        answers = asyncio.run(self._burst(count, path, **options))
        problems = [problem for _, problem in answers if problem]
        assert not problems, f"{len(problems)} of {count}: {problems[:5]}\n{self.said()}"
        if once:
            self._once.update(str(told["number"]) for told, _ in answers)
            self.check()
        return Counter(told["machine"] for told, _ in answers)

    async def _burst(self, count: int, path: str, **options: Any) -> list[tuple[dict[str, Any], str]]:
        async with httpx.AsyncClient(base_url=self.edge.url, timeout=DEADLINE, verify=NO_TLS) as http:
            return await asyncio.gather(*(self._one(http, path, **options) for _ in range(count)))

    async def _one(
        self, http: httpx.AsyncClient, path: str, method: str = "GET", **options: Any
    ) -> tuple[dict[str, Any], str]:
        """What one request told, and what is wrong with its answer."""
        number = str(next(self._numbers))
        body = number.zfill(12).encode() * 4_000 if method == "POST" else b""
        request = http.build_request(method, path, params={"number": number}, content=body, **options)
        try:
            # A pool for each: one pool looks at all of its connections whenever it gives one out or takes one back.
            async with httpx.AsyncHTTPTransport(verify=NO_TLS) as transport:
                answer = await transport.handle_async_request(request)
                await answer.aread()
        except httpx.HTTPError as error:
            return {}, f"{method} {path} {number}: {error!r}"
        if answer.status_code != 200:
            return {}, f"{method} {path} {number}: {answer.status_code} {answer.text[:300]}"
        told: dict[str, Any] = answer.json()
        whole = (told["number"], told["sha256"]) == (number, hashlib.sha256(body).hexdigest())
        return told, "" if whole else f"{method} {path} {number}: it is the answer to {told}"

    def check(self) -> None:
        """No view was called twice for a request of a burst, and no request went from machine to machine in a loop."""
        asked = self._once.copy()  # first: bursts of another thread go on
        called = Counter(self._answered.read_text().split()) if self._answered.exists() else Counter()
        wrong = {number: called[number] for number in asked if called[number] != 1}
        assert not wrong, f"calls of the view by request: {wrong}\n{self.said()}"
        loops = [line for line in self.edge.journal("request") if len(line["machines"]) > 2]
        assert not loops, loops[:5]

    def until_answered(
        self, by: Callable[[dict[str, Any]], bool], path: str = "/listed/", **options: Any
    ) -> dict[str, Any]:
        """The first answer that fits."""
        found: list[dict[str, Any]] = []

        def asked() -> bool:
            found[:] = [self.ask(path, **options)]
            return by(found[0])

        until(asked, DEADLINE, self.said)
        return found[0]

    def row(self, **fields: Any) -> ServerlessMachine | None:
        return ServerlessMachine.objects.filter(**fields).order_by("pk").last()

    def ready(self, path: str = "/listed/", **fields: Any) -> ServerlessMachine:
        """The row of a machine that web processes know to be ready, asking for it meanwhile."""

        def found() -> ServerlessMachine | None:
            told = self.ask(path)
            row = self.row(status="ready", **fields)
            return row if row is not None and told["machine"] == row.fly_id else None

        row = until(found, DEADLINE, self.said)
        assert row is not None
        return row

    def state(self, fly_id: str) -> str:
        with self.world.emulator.client() as client:
            return client.get(fly_id).state

    def said(self) -> str:
        rows = [str(row) for row in ServerlessMachine.objects.values("name", "status", "state", "image", "error")]
        journal = "\n".join(map(str, list(self.edge.journal())[-15:]))
        return f"{chr(10).join(rows)}\n{journal}\n{self.world.said()}"

    def close(self) -> None:
        self.http.close()


class Bursts:
    """Bursts of 200 requests, one after the other until the block ends; all requests must succeed."""

    def __init__(self, site: Site, **options: Any) -> None:
        self.machines: Counter[str] = Counter()
        self.problems: list[str] = []
        self.count = 0
        self._site, self._options = site, options
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._stop.is_set():
            for told, problem in asyncio.run(self._site._burst(200, "/listed/", **self._options)):
                if problem:
                    self.problems.append(problem)
                else:
                    self._site._once.add(told["number"])
                    self.machines[told["machine"]] += 1
            self.count += 1
            self._stop.wait(2.0)  # the machines have to get on, too

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


class Gates:
    """What holds the servers of serverless machines: see `tests.serverless.site.gated`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    @contextlib.contextmanager
    def closed(self, name: str) -> Iterator[None]:
        """`closed`: no server begins. `kept`: no machine that is stopping has stopped."""
        (self.folder / name).touch()
        try:
            yield
        finally:
            (self.folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def opened(root: Path, redis_url: str, url: str = "", **options: Any) -> Iterator[Site]:
    """A world with an edge. `options` change MACHINEQUEUE and the edge's idle_seconds; `url` is another database."""
    idle_seconds = options.pop("idle_seconds", 300)
    gates = Gates(root / "gates")
    gated = ["python", "-m", "tests.serverless.site.gated", str(gates.folder), *GUNICORN]
    more = {
        "DJANGO_SETTINGS_MODULE": "tests.serverless.site.settings",
        "PYTHONPATH": str(ROOT),
        "SITE_SETTINGS": json.dumps({"SERVERLESS_COMMAND": gated, **options}),
        "ANSWERED": str(root / ANSWERED),
    }
    with (
        world(root, redis_url, url=url, more=more) as made,
        Edge(
            api=made.emulator.url, token=made.emulator.token, app=APP, idle_seconds=idle_seconds, patience_seconds=60
        ) as edge,
    ):
        site = Site(made, edge, gates)
        try:
            yield site
        finally:
            site.close()
        site.check()


@pytest.fixture
def site(tables: None, django_db_blocker: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A world of one test, with an edge. `request.param` may change MACHINEQUEUE and the edge's idle_seconds."""
    with django_db_blocker.unblock():
        redis_url = "" if connection.vendor == "sqlite" else request.getfixturevalue("redis_url")
        with opened(tmp_path, redis_url, **getattr(request, "param", {})) as made:
            yield made
