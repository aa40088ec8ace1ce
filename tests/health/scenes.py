"""What curl says of a real site in each failure: processes that are really stopped, and rows as they are left.

`python -m tests.health.scenes` writes the transcripts into docs/how-to/monitor.md; a test makes them again.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from machinequeue.machines.emulator import Emulator
from tests.crash import servers
from tests.ports import free_port
from tests.waiting import until

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/monitor.md"
HOST, TOKEN = "shop.example", "token-of-the-health-pages"
API_TOKEN = "token-of-the-machines-api"
WSGI = ("gunicorn", "demo_site.wsgi", "--threads", "4", "--bind")
ASGI = ("uvicorn", "--factory", "django.core.asgi:get_asgi_application", "--lifespan", "off", "--port")
WAIT = 90


@dataclass
class Site:
    """The demo site as it is deployed, on servers of its own."""

    folder: Path
    postgres: servers.Postgres
    redis: servers.Redis
    emulator: Emulator
    server: tuple[str, ...] = WSGI
    port: int = field(default_factory=free_port)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "demo_site.settings",
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.redis.url,
            "DEMO_STATE_DIR": str(self.folder),
            "SECRET_KEY": "only for tests",
            "DEBUG": "0",
            "ALLOWED_HOSTS": HOST,
            "HEALTH_TOKEN": TOKEN,
            "FLY_APP_NAME": "shop",
            "FLY_API_TOKEN": API_TOKEN,
            "FLY_API_HOSTNAME": self.emulator.url,
            "FLY_IMAGE_REF": "local",
        }

    def start(self, name: str, *words: str, **changes: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env={**self.environment, **changes},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self, name: str) -> None:
        if (process := self.processes.pop(name, None)) is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def manage(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "manage.py", *words], cwd=ROOT, env=self.environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    def shell(self, code: str) -> None:
        self.manage("shell", "-v", "0", "-c", code)

    def sql(self, statement: str) -> None:
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def serve(self) -> None:
        place = str(self.port) if "--port" in self.server else f"127.0.0.1:{self.port}"
        self.start("web", "-m", *self.server, place)
        until(lambda: self.curl("/ht/live/").endswith("200"), WAIT, self.said)

    def dispatch(self, **changes: str) -> None:
        self.start("dispatcher", "manage.py", "mq_dispatcher", **changes)

    def said(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))

    def curl(self, address: str, *, token: bool = False) -> str:
        """What curl prints: the body, and the status after it. A proxy in front has ended TLS, as on Fly."""
        headers = [f"Host: {HOST}", "X-Forwarded-Proto: https"]
        headers += [f"Authorization: Bearer {TOKEN}"] if token else []
        words = [word for header in headers for word in ("-H", header)]
        place = f"http://127.0.0.1:{self.port}{address}"
        asked = ["curl", "-sw", "%{http_code}", "--max-time", "60", *words, place]
        return subprocess.run(asked, capture_output=True, check=False, text=True).stdout

    def text(self) -> str:
        return self.curl("/ht/?format=text", token=True)


@contextlib.contextmanager
def site(server: tuple[str, ...] = WSGI) -> Iterator[Site]:
    """Everything up and healthy."""
    with contextlib.ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="machinequeue-health-")))
        postgres, redis = (exits.enter_context(each) for each in (servers.Postgres(), servers.Redis()))
        emulator = Emulator(
            app="shop",
            token=API_TOKEN,
            images={"local": (ROOT, sys.executable)},
            state_dir=folder / "emulator",
            port=free_port(),  # which nobody else gets when it is stopped
        )
        exits.enter_context(emulator)
        made = Site(folder, postgres, redis, emulator, server)
        for name in ("web", "dispatcher"):
            exits.callback(made.end, name)
        made.manage("migrate", "-v", "0")
        made.shell(PREPARE)
        made.dispatch()
        made.serve()
        up = "The Machines API answered"
        until(lambda: made.text().startswith("ok\n") and up in made.text(), WAIT, lambda: made.text() + made.said())
        yield made


PREPARE = """
from machinequeue.lifecycle import DrillStatus
from machinequeue.records import backups
backup = backups.start(database="default", kind="database", name="shop-2026-11-21.psql.bin", run_id=None)
backups.succeed(backup.pk, seconds=41.0, size_bytes=42_300_000, sha256="0" * 64, counts={"store_purchase": 9})
drill = backups.start_drill(backup.pk, None)
backups.finish_drill(drill.pk, DrillStatus.PROVEN, "", method="scratch server", seconds=60.0)
"""
WAITING_RUN = """
from machinequeue.records import runs
import json
from machinequeue import conf
policy = conf.policy("default", "reports")
spec = conf.spec_of(policy, "")
runs.create(runs.NewRun(task="demo_site.store.tasks.sales_report", args=[1], kwargs={}, backend="default",
    queue="reports", priority=0, run_after=None, spec=json.dumps(spec), spec_key=conf.spec_key(spec), timeout=600.0,
    max_attempts=1))
"""
LATE_SCHEDULE = """
from datetime import timedelta
from django.utils import timezone
from machinequeue.models import Schedule
Schedule.objects.create(name="nightly", task="demo_site.store.tasks.sales_report", every_seconds=60,
    next_at=timezone.now() - timedelta(minutes=20))
"""
STUCK_MACHINE = """
from datetime import timedelta
from django.utils import timezone
from machinequeue.models import Machine
Machine.objects.create(name="mq-reports-5d41402abc4b", fly_id="148ed127b23d89", app="shop", image="local",
    backend="default", queue="reports", spec={}, spec_key="0" * 16, status="busy", state="started",
    deadline_at=timezone.now() - timedelta(minutes=40))
"""
BAD_COPIES = """
from machinequeue.lifecycle import DrillStatus
from machinequeue.records import backups
drill = backups.start_drill(backups.newest().pk, None)
backups.finish_drill(drill.pk, DrillStatus.FAILED, "table store_purchase has 8 rows, 9 were dumped")
failed = backups.start(database="default", kind="database", name="shop-2026-11-22.psql.bin", run_id=None)
backups.fail(failed.pk, "pg_dump 15.8 is older than the server, 17.2")
"""


@dataclass
class Transcript:
    """Commands as an operator types them, and what they printed."""

    name: str
    lines: list[str] = field(default_factory=list)

    def add(self, site: Site, address: str, *, token: bool = False) -> None:
        header = ' -H "Authorization: Bearer $HEALTH_TOKEN"' if token else ""
        place = f"https://{HOST}{address}"
        place = f"'{place}'" if "?" in place else place
        said = site.curl(address, token=token)
        self.lines += [f"$ curl -sw '%{{http_code}}'{header} {place}", *said.splitlines()]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def play(site: Site) -> dict[str, Transcript]:
    """Every scene, in an order in which each leaves what the next needs."""
    played: dict[str, Transcript] = {}

    def scene(name: str, *asked: tuple[str, bool], when: Callable[[], object] = lambda: True) -> None:
        until(when, WAIT, lambda: site.text() + site.said())
        played[name] = transcript = Transcript(name)
        for address, token in asked:
            transcript.add(site, address, token=token)

    text, probes = ("/ht/?format=text", True), (("/ht/live/", False), ("/ht/ready/", False))
    scene("healthy", *probes, text)
    scene("healthy-json", ("/ht/", True))
    scene("refused", ("/ht/", False))

    site.redis.end()
    scene("redis", *probes, text)
    site.redis.start()

    site.end("dispatcher")
    site.shell(WAITING_RUN + LATE_SCHEDULE)
    site.sql("UPDATE machinequeue_taskrun SET run_after = run_after - INTERVAL '2 hours'")
    scene("dispatcher", *probes, text)
    site.sql("DELETE FROM machinequeue_schedule")

    site.shell(STUCK_MACHINE)
    site.dispatch(FLY_API_TOKEN="a-token-that-was-revoked")
    scene("fly", *probes, text, when=lambda: "circuit is open" in site.text() and "alive" in site.text())
    site.end("dispatcher")
    site.sql("DELETE FROM machinequeue_machine")
    site.sql("DELETE FROM machinequeue_taskrun")
    site.sql("UPDATE machinequeue_apianswer SET answered_at = answered_at - INTERVAL '15 minutes', error = error")
    site.emulator.stop()
    site.dispatch()
    scene("api", text, when=lambda: "Unreachable" in site.text() and "failure" not in site.text())

    site.shell(BAD_COPIES)
    scene("backup", text)

    assert site.postgres._process is not None
    site.postgres._process.send_signal(signal.SIGKILL)
    site.postgres._process.wait()
    scene("database", *probes, text, when=lambda: "503" in site.curl("/ht/ready/"))
    return played


VARIES = (
    (r"(Errno|Error) \d+", r"\1 N"),
    (r"\b\d+(\.\d+)? (s|min|h|d)\b", "N s"),
    (r" \(tried again every [^)]*\)", ""),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"localhost:\d+", "ADDRESS"),
    (r'("[a-z_]*(seconds|alive|bytes)": )[\d.e-]+', r"\1N"),
)


def shape(transcript: str) -> list[str]:
    """A transcript without what differs from time to time."""
    for pattern, kept in VARIES:
        transcript = re.sub(pattern, kept, transcript)
    return transcript.splitlines()


BLOCK = re.compile(r"(<!-- transcript: (\S+) -->\n```console\n)(.*?)(\n```)", re.DOTALL)


def kept() -> dict[str, str]:
    """The transcripts of the page, by name."""
    return {match[2]: match[3] for match in BLOCK.finditer(PAGE.read_text())}


def write(played: dict[str, Transcript]) -> None:
    """Put them where the page has a place for them."""
    page = BLOCK.sub(lambda match: f"{match[1]}{played[match[2]]}{match[4]}", PAGE.read_text())
    PAGE.write_text(page)


if __name__ == "__main__":
    with site() as made:
        write(play(made))
