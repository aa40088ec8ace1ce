"""A database and two Redis databases of this run's own, on servers that run already."""

import contextlib
import getpass
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis

CLAIM = "machinequeue:benchmarks:claimed-by"


class ServerMissing(SystemExit):
    """A server to measure on is not there. A benchmark starts none: how a server is set up is part of the figure."""


def _with_path(url: str, path: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))


def _postgres() -> str:
    """The URL of a PostgreSQL server: DATABASE_URL, else the one on this computer. Raises ServerMissing."""
    given = os.environ.get("DATABASE_URL", "")
    users = dict.fromkeys((getpass.getuser(), "postgres"))
    for url in [given] if given else [f"postgresql://{user}@127.0.0.1:5432/postgres" for user in users]:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2):
            return url
    raise ServerMissing("benchmarks: no PostgreSQL at DATABASE_URL or 127.0.0.1:5432 that lets us in. Start one.")


@contextlib.contextmanager
def database() -> Iterator[str]:
    """The URL of a new PostgreSQL database, dropped at the end."""
    server, name = _postgres(), f"mq_bench_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield _with_path(server, name)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextlib.contextmanager
def redis_database() -> Iterator[str]:
    """The URL of a Redis database that held nothing, emptied at the end. Raises ServerMissing."""
    server = os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379"
    url = next((url for number in range(15, -1, -1) if _claim(url := _with_path(server, str(number)))), None)
    if url is None:
        raise ServerMissing("benchmarks: Redis has no empty database among 0 to 15.")
    try:
        yield url
    finally:
        with redis.Redis.from_url(url) as client:
            client.flushdb()


def _claim(url: str) -> bool:
    with redis.Redis.from_url(url, socket_connect_timeout=2) as client:
        try:
            if client.dbsize() or not client.set(CLAIM, f"{socket.gethostname()} {os.getpid()}", nx=True):
                return False
        except redis.ConnectionError:
            raise ServerMissing("benchmarks: no Redis at REDIS_URL or 127.0.0.1:6379. Start one.") from None
        return True


def versions(database_url: str, redis_url: str) -> dict[str, str]:
    """The servers' versions, and the settings of theirs that a commit's price depends on."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name IN ('server_version', 'fsync', 'synchronous_commit')"
        )
        postgres = {f"PostgreSQL {name}".replace(" server_version", ""): value.split()[0] for name, value in rows}
    with redis.Redis.from_url(redis_url) as client:
        return {**postgres, "Redis": client.info("server")["redis_version"]}
