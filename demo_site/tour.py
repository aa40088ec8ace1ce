"""`make demo ARGS=--serverless`: a receipt made by a view, on a machine that exists only while somebody asks.

The site is a machine of its own behind a local edge, as it is on Fly behind Fly's proxy.
"""

import contextlib
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.urls import reverse

from demo_site import proof, show
from demo_site.stage import APP, IMAGE, Stage, StageError
from demo_site.store.models import Purchase
from demo_site.store.seeding import seed_purchases
from machinequeue.machines.proxy import Edge
from machinequeue.machines.schema import CreateRequest

WAIT_SECONDS = 120
POLL_SECONDS = 0.25
IDLE_SECONDS = 4
WEB = "web-1"
SERVER = ["python", "-m", "gunicorn", "--bind", "{bind}", "--threads", "4", "demo_site.wsgi"]


def travel() -> int:
    """The exit status: 0 when a serverless machine made the receipt, stopped, and came back; 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        left = _travel()
    except KeyboardInterrupt:
        show.say("Ended; nothing was left behind.")
        return 130
    except (StageError, TimeoutError, OSError) as error:
        show.complain([str(error)])
        return 1
    show.complain(left)
    return 1 if left else 0


def _travel() -> list[str]:
    settings.STATE_DIR.mkdir(parents=True, exist_ok=True)
    call_command("migrate", verbosity=0)
    seed_purchases(1)
    receipt = reverse("store:receipt-at-once", args=[Purchase.objects.get(number=1).token])
    with contextlib.ExitStack() as exits:
        # With DEBUG off the settings are those for Fly, where everything is HTTPS.
        stage = exits.enter_context(Stage(settings.STATE_DIR, DEBUG="1"))
        emulator = stage.emulator
        edge = Edge(api=emulator.url, token=emulator.token, app=APP, idle_seconds=IDLE_SECONDS)
        exits.enter_context(edge)
        _show(Visit(stage, edge), receipt)
        pids = {**stage.pids, "edge": edge.pid}
        journal = list(emulator.journal())
    return proof.survivors({"runs": [], "processes": pids}, journal)


def _show(visit: "Visit", receipt: str) -> None:
    web = visit.open_site()
    show.say(f"The shop is open at {visit.edge.url}, behind a local edge: one web machine, {web}.")
    show.say(f"The receipt: {visit.ask(receipt)} – in place, and a machine is wished for.")
    made = visit.until(lambda: visit.served(receipt, but=web), "a serverless machine to answer")
    show.say(f"The receipt: {visit.said} – by the view, on its serverless machine.")
    show.say(f"Another page: {visit.ask(reverse('store:storefront'))}.")
    visit.until(lambda: visit.events("stop", made), "the serverless machine to stop")
    show.say(f"Machine {made} stopped: nobody had asked for {IDLE_SECONDS} s. Stopped, it costs its disk only.")
    starts = len(visit.events("start", made))
    visit.until(lambda: visit.served(receipt, only=made), "the serverless machine to come back")
    show.say(f"The receipt: {visit.said} – the request started it ({len(visit.events('start', made)) - starts} start).")


class Visit:
    """Requests through the edge, and what the edge says of them."""

    def __init__(self, stage: Stage, edge: Edge) -> None:
        self.stage = stage
        self.edge = edge
        self.said = ""

    def open_site(self) -> str:
        """The Fly id of the site's machine, once it answers."""
        port = {"port": 80, "handlers": ["http"]}
        config = {
            "image": IMAGE,
            "init": {"cmd": ["python", "-m", "machinequeue.serverless", *SERVER]},
            "restart": {"policy": "no"},
            "stop_config": {"signal": "SIGTERM", "timeout": "20s"},
            "services": [{"protocol": "tcp", "internal_port": 8080, "ports": [port]}],
        }
        with self.stage.emulator.client() as client:
            made = client.create(CreateRequest(WEB, "iad", config))
        self.ask(reverse("store:storefront"))  # the edge waits until it listens
        return made.id

    def ask(self, path: str) -> str:
        """What a request brought, and which machine served it."""
        begin = time.monotonic()
        with urllib.request.urlopen(f"{self.edge.url}{path}", timeout=WAIT_SECONDS) as answer:  # noqa: S310
            size = len(answer.read())
            ask_id = answer.headers["Fly-Request-Id"]
        milliseconds = (time.monotonic() - begin) * 1000
        self.machine = self.until(lambda: self._who(ask_id), "the edge's journal")
        self.said = f"{size:,} bytes from machine {self.machine} in {milliseconds:.0f} ms"
        return self.said

    def _who(self, request_id: str) -> str:
        lines = [line for line in self.edge.journal("request") if line["request_id"] == request_id]
        return str(lines[-1]["machines"][-1]) if lines and lines[-1]["machines"] else ""

    def served(self, path: str, *, but: str = "", only: str = "") -> str:
        """The machine that served it, if it is another than `but`, or the one that was meant."""
        self.ask(path)
        return self.machine if self.machine != but and only in ("", self.machine) else ""

    def events(self, kind: str, machine: str) -> list[dict[str, Any]]:
        """Starts or stops of a machine, by the edge."""
        return [line for line in self.edge.journal(kind) if line["machine"] == machine]

    def until[T](self, found: Callable[[], T], what: str) -> T:
        """The first true value. Raises TimeoutError and StageError."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (value := found()):
            self.stage.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"Waited {WAIT_SECONDS} s for {what}. The logs are in {self.stage.logs}.")
            time.sleep(POLL_SECONDS)
        return value
