"""PostgreSQL and Redis for the tests: the servers named by the environment, else those of this machine, else our own.

Servers started here live in a directory of their own and end with this process. On a server that others use too, tests
keep to databases made for this run: nothing else is read, changed or flushed.
"""

import atexit
import contextlib
import functools
import getpass
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import redis as redis_client

from tests.ports import free_port

START_SECONDS = 60.0
CLAIM = "machinequeue:tests:claimed-by"
_numbers = itertools.count(1)


class ServiceMissing(Exception):
    """A server that the tests need is neither running, nor installed, nor installable here."""


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@functools.cache
def postgres() -> str:
    """The URL of a PostgreSQL server that lets us create databases, with a database to connect to.

    Raises ServiceMissing with what to install or set.
    """
    given = os.environ.get("DATABASE_URL", "")
    if given.startswith(("postgres://", "postgresql://")):
        if _postgres_answers(given):
            return given
        raise ServiceMissing(
            f"DATABASE_URL names PostgreSQL at {_place(given)}, where no server lets us create databases."
        )
    return _running_postgres() or _start_postgres()


@contextlib.contextmanager
def postgres_database() -> Iterator[str]:
    """The URL of a new, empty database, dropped at the end with whoever is still connected to it."""
    server = postgres()
    name = f"mq_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
    try:
        yield _with_path(server, name)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')  # type: ignore[arg-type]


def _running_postgres() -> str | None:
    port = os.environ.get("PGPORT", "5432")
    for user in dict.fromkeys((getpass.getuser(), "postgres", "root")):
        url = f"postgresql://{user}@127.0.0.1:{port}/postgres"
        if _postgres_answers(url):
            return url
    return None


def _postgres_answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=20) as connection:
            row = connection.execute(
                "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
    except psycopg.Error:
        return False
    return bool(row and row[0])


def _start_postgres() -> str:
    initdb = _binary("initdb", "postgresql", Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    folder = _folder("postgres")
    port = free_port()
    account = _account("postgres")
    commands = initdb.resolve().parent
    subprocess.run(
        [initdb, "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        check=True,
        **account,
    )
    options = f"listen_addresses=127.0.0.1 unix_socket_directories={folder} fsync=off max_connections=200"
    settings = [part for option in options.split() for part in ("-c", option)]
    _serve([commands / "postgres", "-D", folder / "data", "-p", str(port), *settings], folder, account)
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    _wait("PostgreSQL", lambda: _postgres_answers(url), folder)
    return url


# --- Redis -----------------------------------------------------------------------------------------------------------


@functools.cache
def redis() -> str:
    """The URL of a Redis server, with no database number. Raises ServiceMissing with what to install or set."""
    given = os.environ.get("REDIS_URL", "")
    if given:
        if _redis_answers(given):
            return given
        raise ServiceMissing(f"REDIS_URL names Redis at {_place(given)}, where no server answers.")
    local = "redis://127.0.0.1:6379"
    return local if _redis_answers(local) else _start_redis()


@contextlib.contextmanager
def redis_database() -> Iterator[str]:
    """The URL of a Redis database that was empty, claimed for this process and emptied at the end."""
    server = redis()
    for number in range(15, -1, -1):
        url = _with_path(server, str(number))
        if not _claim(url):
            continue
        try:
            yield url
        finally:
            with redis_client.Redis.from_url(url) as client:
                client.flushdb()
        return
    raise ServiceMissing(f"Redis at {_place(server)} has no empty database among 0 to 15 for the tests to use.")


def _claim(url: str) -> bool:
    """Whether this database is ours: it holds nothing but our claim, or what a test run that died left behind."""
    with redis_client.Redis.from_url(url, decode_responses=True) as client:
        me = f"{socket.gethostname()} {os.getpid()}"
        if _is_used(client):
            return False
        if not client.set(CLAIM, me, nx=True):
            host, _, pid = str(client.get(CLAIM) or "").partition(" ")
            if host != socket.gethostname() or not pid.isdigit() or psutil.pid_exists(int(pid)):
                return False
            client.flushdb()
            return bool(client.set(CLAIM, me, nx=True))
        if client.dbsize() == 1:
            return True
        client.delete(CLAIM)
        return False


def _is_used(client: "redis_client.Redis") -> bool:
    """Whether others are connected to this database: a dispatcher of a test run that was killed takes wake-ups."""
    own = str(client.client_id())
    number = str(client.client_info()["db"])
    return any(each["db"] == number and each["id"] != own for each in client.client_list())


def _redis_answers(url: str) -> bool:
    try:
        with redis_client.Redis.from_url(url, socket_connect_timeout=20, socket_timeout=20) as client:
            return bool(client.ping())
    except redis_client.RedisError:
        return False


def _start_redis() -> str:
    found = shutil.which("valkey-server")
    server = Path(found) if found else _binary("redis-server", "redis-server", [])
    folder = _folder("redis")
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    _serve([server, *options], folder, {})
    url = f"redis://127.0.0.1:{port}"
    _wait("Redis", lambda: _redis_answers(url), folder)
    return url


# --- what both stand on ----------------------------------------------------------------------------------------------


def _binary(program: str, package: str, elsewhere: Iterator[Path] | list[Path]) -> Path:
    """The program on PATH or elsewhere; from the system's package manager when we are root; else ServiceMissing."""
    places = sorted(elsewhere)
    found = shutil.which(program) or (str(places[-1]) if places else None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_install(package)
        installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
        found = shutil.which(program) or (str(installed[-1]) if installed else None)
    if found is None:
        variable = "DATABASE_URL" if package == "postgresql" else "REDIS_URL"
        raise ServiceMissing(
            f"{program} was not found and could not be installed. Install the package {package}, "
            f"or set {variable} to a server that the tests may use."
        )
    return Path(found)


def _apt_install(package: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", package]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceMissing(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")


def _account(user: str) -> dict[str, object]:
    """How to start a program that refuses to run as root: as this user, or as nobody."""
    if os.geteuid() != 0:
        return {}
    for name in (user, "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise ServiceMissing("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as.")


def _folder(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"mq-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    account = _account("postgres") if name == "postgres" else {}
    if account:
        os.chown(folder, int(str(account["user"])), int(str(account["group"])))
    return folder


def _serve(command: list[Path | str], folder: Path, account: dict[str, object]) -> None:
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **account
        )
    atexit.register(_end, server)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown; Redis takes it as a wish to stop as well
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _wait(what: str, ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            log = (folder / "log").read_text(errors="replace")[-1000:]
            raise ServiceMissing(
                f"{what} did not answer within {START_SECONDS:.0f} s of its start. Its log ends: {log}"
            )
        time.sleep(0.05)


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 'its default port'}"


def _with_path(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
