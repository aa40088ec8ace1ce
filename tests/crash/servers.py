"""Redis and PostgreSQL servers of a test's own, to be killed, restarted and choked."""

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

import psycopg
import redis

from tests import services
from tests.ports import free_port

STOP_SECONDS = 60


class Server:
    """A server process that can be started again on the same port, with the same files."""

    name = ""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = services._folder(self.name)
        self.account: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[Any]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start, and wait until it answers. One that runs is left alone."""
        if self._process is not None and self._process.poll() is None:
            return
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.account,
            )
        services._wait(self.name, self.answers, self.folder)

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(STOP_SECONDS)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()


class Redis(Server):
    """Keeps nothing on disk: killed, it has lost everything."""

    name = "redis"

    @property
    def command(self) -> list[Any]:
        program = services._binary("redis-server", "redis-server", [])
        return [program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        return services._redis_answers(self.url)

    def client(self) -> "contextlib.AbstractContextManager[redis.Redis]":
        return contextlib.closing(redis.Redis.from_url(self.url))

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def refuse_writes(self, refuse: bool = True) -> None:
        """Be full, with a policy that evicts nothing."""
        with self.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", 1 if refuse else 0)


class Postgres(Server):
    """Files of its own, made once; `killed` means that connections end in the middle of what they do."""

    name = "postgres"

    def __init__(self) -> None:
        super().__init__()
        initdb = services._binary("initdb", "postgresql", Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        self._programs = initdb.resolve().parent
        self.account = services._account(self.name)
        words = [initdb, "-D", self.folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(words, cwd=self.folder, stdout=subprocess.DEVNULL, check=True, **self.account)

    @property
    def command(self) -> list[Any]:
        settings = ["listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", "fsync=off"]
        words = [part for setting in settings for part in ("-c", setting)]
        return [self._programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), *words]

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def answers(self) -> bool:
        return services._postgres_answers(self.url)

    def restart(self) -> None:
        """End every connection at once, as in a failover, and start again."""
        self.end(signal.SIGQUIT)
        self.start()


def end_connections(url: str, *, but: int = 0) -> int:
    """Terminate every connection to the database, but that of one process id; how many there were."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)",
            [but],
        )
        return len(rows.fetchall())
