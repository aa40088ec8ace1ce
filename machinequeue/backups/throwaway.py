"""A PostgreSQL server for one drill: from the machine's own binaries, in a folder of its own, deaf to the network."""

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machinequeue.errors import NotProven

START_SECONDS = 60.0
STOP_SECONDS = 30.0
PORT = 5432
USER = "postgres"


@dataclass(frozen=True)
class Place:
    """Where PostgreSQL's programs find a database, as libpq's environment variables; nothing of it is in an argv."""

    host: str
    port: str
    user: str
    password: str
    name: str
    options: dict[str, str]
    """libpq's, as sslmode."""

    def env(self) -> dict[str, str]:
        """The environment of a program that shall connect there."""
        ours = {"PGHOST": self.host, "PGPORT": self.port, "PGUSER": self.user, "PGDATABASE": self.name}
        ours["PGPASSWORD"] = self.password
        ours |= {f"PG{name.upper()}": value for name, value in self.options.items()}
        rest = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {**rest, **{name: value for name, value in ours.items() if value}}


def programs() -> Path | None:
    """The folder with initdb and postgres, of the newest version that is installed; None without them."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(installed, key=lambda folder: _number(folder.parent.name), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def major(folder: Path) -> int:
    """The major version of the server in this folder."""
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    return _number(said.removeprefix("postgres (PostgreSQL)").strip())


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found.group()) if found else 0


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Place]:
    """A new, empty server that ends with the block and leaves nothing. Raises NotProven when it does not start."""
    account = _account()
    root = Path(tempfile.mkdtemp(prefix="mq-drill-", dir="/tmp" if len(tempfile.gettempdir()) > 60 else None))  # noqa: S108
    try:
        if account:
            os.chown(root, account["user"], account["group"])
        _initialise(folder, root, account)
        with _serving(folder, root, account):
            yield Place(str(root), str(PORT), USER, "", USER, {})
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _account() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: as whom it runs then."""
    if os.geteuid() != 0:
        return {}
    for name in (USER, "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise NotProven("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as.")


def _initialise(folder: Path, root: Path, account: dict[str, Any]) -> None:
    made = subprocess.run(
        [folder / "initdb", "-D", root / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
        cwd=root,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        **account,
    )
    if made.returncode:
        raise NotProven(f"A server for the drill could not be made: {made.stderr.strip()[-500:]}")


@contextlib.contextmanager
def _serving(folder: Path, root: Path, account: dict[str, Any]) -> Iterator[None]:
    settings = ["listen_addresses=", f"unix_socket_directories={root}", "fsync=off", "full_page_writes=off"]
    settings += ["synchronous_commit=off", "autovacuum=off", "max_connections=10", "max_wal_size=256MB"]
    words = [str(folder / "postgres"), "-D", str(root / "data"), "-p", str(PORT)]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [*words, *(part for setting in settings for part in ("-c", setting))],
            cwd=root,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **account,
        )
    try:
        _await(process, root)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(process: "subprocess.Popen[bytes]", root: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    state = root / "data" / "postmaster.pid"
    while not _is_ready(state):
        if process.poll() is not None or time.monotonic() > deadline:
            said = (root / "log").read_text(errors="replace").strip()[-500:]
            raise NotProven(f"A server for the drill did not start within {START_SECONDS:.0f} s: {said}")
        time.sleep(0.05)


def _is_ready(state: Path) -> bool:
    """The last line of a server's own file says how far it is."""
    try:
        lines = state.read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[7].strip() == "ready"


def _environment() -> dict[str, str]:
    """No PG… variable of ours may steer a server that is for the drill alone, and no secret is its business."""
    return {name: value for name, value in os.environ.items() if name in ("PATH", "TZ", "TMPDIR")} | {"LC_ALL": "C"}
