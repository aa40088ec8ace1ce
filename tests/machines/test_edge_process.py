"""The edge as a program, and in front of real Django servers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from django.core.management import CommandError, call_command

from machinequeue import conf
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.proxy import Edge, EdgeError
from machinequeue.machines.proxy.options import parse
from machinequeue.machines.schema import CreateRequest, Machine
from machinequeue.machines.session import is_loopback
from tests.machines.conftest import until

COMMAND = [sys.executable, "-m", "machinequeue.machines.proxy"]
PROJECT = Path(__file__).resolve().parents[2]
SERVICE = {
    "internal_port": 8000,
    "protocol": "tcp",
    "ports": [{"port": 443, "handlers": ["tls", "http"]}],
    "autostart": True,
}

# A whole Django project in one file: a view that hands over to another machine, and one that says where it runs.
SITE = """
import os, threading
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse, JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=[".localhost", "127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of the test",
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)


def report(request):
    if request.GET["on"] != os.environ["FLY_MACHINE_ID"]:
        return HttpResponse(headers={"fly-replay": f"instance={request.GET['on']};state=report"})
    return JsonResponse({
        "machine": os.environ["FLY_MACHINE_ID"],
        "method": request.method,
        "posted": request.POST.dict(),
        "source": request.headers.get("fly-replay-src", ""),
        "host": request.get_host(),
        "url": request.build_absolute_uri(),
        "client": request.headers["fly-client-ip"],
    })


def hold(request):
    print("held", flush=True)
    while not os.path.exists(request.GET["until"]):
        threading.Event().wait(0.01)
    return HttpResponse("done")


urlpatterns = [path("report/", report), path("hold/", hold)]

if __name__ == "__main__":
    execute_from_command_line(["site", "runserver", "--noreload", os.environ["FLY_PRIVATE_IP"] + ":8000"])
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    image = tmp_path_factory.mktemp("django-image")
    (image / "site_of_one_file.py").write_text(SITE)
    with Emulator(app="shop", images={"site": image}) as running:
        yield running


def sites(emulator: Emulator, stack: ExitStack, count: int, stopped: int = 0) -> list[Machine]:
    """Machines that run a Django server each; the last `stopped` of them rest."""
    client = stack.enter_context(emulator.client())
    config = {"image": "site", "init": {"cmd": ["python", "site_of_one_file.py"]}, "services": [SERVICE]}
    made = []
    for number in range(count):
        rests = number >= count - stopped
        machine = client.create(CreateRequest(f"{id(stack)}-{number}", None, config, skip_launch=rests))
        stack.callback(client.destroy, machine.id, force=True)
        client.wait(machine.id, "stopped" if rests else "started")
        made.append(machine)
    return made


def test_a_django_view_hands_its_request_to_another_machine(emulator: Emulator) -> None:
    with ExitStack() as stack, Edge(api=emulator.url, token=emulator.token, app="shop") as edge:
        web, worker = sites(emulator, stack, 2, stopped=1)
        http = stack.enter_context(httpx.Client(base_url=edge.url, headers={"host": "shop.localhost"}, timeout=60))
        # It still boots, and is waited for.
        here = http.get("/report/", params={"on": web.id}, headers={"fly-force-instance-id": web.id}).json()
        assert (here["machine"], here["source"]) == (web.id, "")
        # The worker is not even started.
        answer = http.post("/report/", params={"on": worker.id}, data={"month": "May"})
        assert answer.status_code == 200
        told = answer.json()
        assert told["source"].startswith(f"instance={web.id};region=iad;t=")
        assert told["source"].endswith(";state=report")
        del told["source"]
        assert told == {
            "machine": worker.id,
            "method": "POST",
            "posted": {"month": "May"},
            "host": "shop.localhost",
            "url": f"http://shop.localhost/report/?on={worker.id}",
            "client": "127.0.0.1",
        }
        assert "fly-replay" not in answer.headers
        lines = list(edge.journal("request"))
        assert [line["machines"] for line in lines] == [[web.id], [web.id, worker.id]]
        assert "month" not in edge.log_path.read_text()
        assert [line["machine"] for line in edge.journal("start")] == [worker.id]


def test_requests_in_flight_end_before_the_edge_does(emulator: Emulator, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ExitStack() as stack, Edge(api=emulator.url, token=emulator.token, app="shop") as edge:
        (machine,) = sites(emulator, stack, 1)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        held = pool.submit(httpx.get, f"{edge.url}/hold/", params={"until": str(gate)}, timeout=60)
        until(lambda: "held\n" in emulator.output(machine.id), 60)
        process = psutil.Process(edge.pid)
        process.terminate()
        address = ("127.0.0.1", int(edge.url.rpartition(":")[2]))
        until(lambda: not accepts(address))
        assert not held.done()
        gate.touch()
        assert held.result().text == "done"
        edge.stop()
        assert not process.is_running()


def accepts(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def test_the_end_is_bounded(emulator: Emulator, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ExitStack() as stack, Edge(api=emulator.url, token=emulator.token, app="shop", grace_seconds=1) as edge:
        (machine,) = sites(emulator, stack, 1)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(gate.touch)
        held = pool.submit(httpx.get, f"{edge.url}/hold/", params={"until": str(gate)}, timeout=60)
        until(lambda: "held\n" in emulator.output(machine.id), 60)
        process = psutil.Process(edge.pid)
        edge.stop(timeout_seconds=15)
        assert not process.is_running()
        assert held.result().status_code == 500


def test_the_command_line(emulator: Emulator, tmp_path: Path) -> None:
    words = ["--api", emulator.url, "--app", "shop", "--port", "0", "--state-dir", str(tmp_path), "--verbose"]
    environment = {**os.environ, "FLY_API_TOKEN": emulator.token}
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    url = process.stdout.readline().removeprefix("edge ready on ").strip()
    assert httpx.get(f"{url}/some/path?token=not-for-logs").status_code == 503
    line = process.stdout.readline()
    assert line.startswith("GET /some/path 503 - ")
    assert emulator.token not in " ".join(psutil.Process(process.pid).cmdline())
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert "not-for-logs" not in (tmp_path / "edge.jsonl").read_text()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "from machinequeue.machines.proxy import Edge\n"
        f"edge = Edge(api='http://127.0.0.1:9', token='t', state_dir={str(tmp_path)!r}).start()\n"
        "print(edge.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    pid = int(done.stdout)
    until(lambda: not psutil.pid_exists(pid))


def test_an_api_that_cannot_be_reached_is_a_503() -> None:
    with Edge(api="http://127.0.0.1:9", token="token-of-the-api") as edge:
        answer = httpx.get(edge.url)
        assert answer.status_code == 503
        assert answer.text == "edge: the Machines API does not say which machines there are (Unreachable)\n"
        assert any("Connection refused" in line["text"] for line in edge.journal("problem"))
        assert "token-of-the-api" not in repr(edge) + edge.log_path.read_text()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EdgeError, match=f"port {port} cannot be used"):
            Edge(api="http://127.0.0.1:9", token="t", port=port).start()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--api", "nonsense"], "at an address such as http://127.0.0.1:4280, not 'nonsense'"),
        (["--api", "https://api.machines.dev"], "the edge works with an emulator"),
        (["--app", "Not A Name"], "may have lower-case letters"),
        (["--port", "99999"], "a port is a number from 0 to 65535"),
        (["--region", "moon"], "invalid choice: 'moon'"),
        (["--idle-seconds", "0"], "a time is a number of seconds above 0"),
        (["--patience-seconds", "long"], "a time is a number of seconds above 0"),
        (["--state-dir", "/dev/null/x"], "/dev/null/x cannot be made"),
    ],
)
def test_bad_options_are_explained(words: list[str], said: str) -> None:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("app", "token", "said"), [("nowhere", None, "404"), ("shop", "wrong", "401")])
def test_an_edge_that_can_do_nothing_says_so(
    emulator: Emulator, tmp_path: Path, app: str, token: str | None, said: str
) -> None:
    with Edge(api=emulator.url, token=token or emulator.token, app=app, state_dir=tmp_path) as edge:
        stderr = tmp_path / "edge.stderr"
        until(lambda: str(edge.log_path) in stderr.read_text())
        assert f"edge: app {app}: " in stderr.read_text()
        assert said in stderr.read_text()


def test_an_app_that_is_not_there_is_not_asked_for_again(emulator: Emulator, tmp_path: Path) -> None:
    with ExitStack() as stack:
        edge = Edge(
            api=emulator.url,
            token=emulator.token,
            app="shop",
            idle_seconds=0.05,
            cache_seconds=0.01,
            state_dir=tmp_path,
        )
        stack.enter_context(edge)
        http = stack.enter_context(httpx.Client(base_url=edge.url))
        assert http.get("/", headers={"host": "nowhere.localhost"}).status_code == 404
        asked = len([*edge.journal("problem")])
        # The fleet of an app that is there looks every 10 ms: many looks later it is as it was, but for one under way.
        (web,) = sites(emulator, stack, 1)
        until(lambda: http.get("/report/", params={"on": web.id}).status_code == 200)
        assert len([*edge.journal("problem")]) <= asked + 1


def test_the_management_command_runs_it_for_the_project(tmp_path: Path) -> None:
    words = [sys.executable, "manage.py", "mq_edge", "--port", "0", "--idle-seconds", "60"]
    local = {"DEMO_STATE_DIR": str(tmp_path), "FLY_API_HOSTNAME": "http://127.0.0.1:9"}
    environment = {**os.environ, **local, "DJANGO_SETTINGS_MODULE": "demo_site.settings"}
    process = subprocess.Popen(
        words, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        assert line.startswith("edge ready on http://127.0.0.1:"), process.communicate(timeout=60)
        assert httpx.get(line.removeprefix("edge ready on ").strip()).status_code == 503
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert list(tmp_path.rglob("edge/edge.jsonl"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mq_edge", "--idle-seconds", "-3"], "a time is a number of seconds above 0 and up to 86400, not '-3'"),
        (["mq_edge", "--port", "99999"], "a port is a number from 0 to 65535, not '99999'"),
        (["mq_emulator", "--port", "http"], "a port is a number from 0 to 65535, not 'http'"),
        (["mq_emulator", "--boot-delay", "soon=1"], "a boot is one of: create, start, not 'soon'"),
        (["mq_dev", "--edge-port", "-1"], "a port is a number from 0 to 65535, not '-1'"),
        (["mq_dev", "--boot-delay", "create=5..2"], "a boot's delay is SECONDS, FROM..TO or ~MEDIAN"),
    ],
)
def test_the_management_commands_judge_what_they_pass_on(words: list[str], said: str) -> None:
    """Else the complaint would come with the usage of a module that nobody called."""
    with pytest.raises(CommandError, match=re.escape(said)):
        call_command(*words)


@pytest.mark.parametrize("api", ["https://api.machines.dev", "http://127.example.com", "http://10.0.0.1:4280"])
@pytest.mark.parametrize(
    ("command", "does"),
    [("mq_edge", "works with the local one"), ("mq_dev", "starts a local one"), ("mq_emulator", "is a local one")],
)
def test_the_local_management_commands_stay_away_from_fly(
    monkeypatch: pytest.MonkeyPatch, command: str, does: str, api: str
) -> None:
    settings = SimpleNamespace(api_url=api, api_token="t", app="shop")
    monkeypatch.setattr("machinequeue.conf.settings", lambda: settings)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it was started"))
    with pytest.raises(CommandError, match=f"The Machines API is set to {api}; {command} {does}"):
        call_command(command)


@pytest.mark.parametrize("api", ["http://localhost:4280", "http://127.0.0.7:4280", "http://[::1]:4280"])
def test_this_computer_has_several_names(monkeypatch: pytest.MonkeyPatch, api: str) -> None:
    settings = SimpleNamespace(api_url=api)
    monkeypatch.setattr("machinequeue.conf.settings", lambda: settings)
    assert conf.need_local_api("mq_dev", "") is settings
    assert is_loopback(api)
    assert parse(["--api", api, "--state-dir", os.devnull.rpartition("/")[0]], {}).api == api


def test_the_edge_uses_nothing_of_what_rate_limits_leave_to_the_dispatcher(tmp_path: Path) -> None:
    with Emulator(app="shop", images={"app:1": tmp_path}, rate_limits=True) as emulator:
        edge = Edge(api=emulator.url, token=emulator.token, app="shop", cache_seconds=0.001)
        with edge, httpx.Client(base_url=edge.url) as browser:
            for _ in range(10):
                assert browser.get("/").status_code == 503
        client = emulator.client(read_tries=1)
        with client:
            for _ in range(3):
                assert client.list() == []
