"""The image: its Dockerfile lints, its steps work, and what it starts serves, executes and ends as it should."""

import contextlib
import http.client
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import psutil
import pytest

from machinequeue.machines.emulator import Emulator
from tests import services
from tests.ports import free_port
from tests.project import fly_toml
from tests.project.image import DOCKERFILE, ROOT, Image, find_uv, ignored
from tests.waiting import until

SCRIPTS = sorted((ROOT / "docker").glob("*.sh"))
CONFIG: dict[str, Any] = tomllib.loads((ROOT / "fly.toml").read_text())
KILL_SECONDS = fly_toml.seconds(CONFIG["kill_timeout"])
PAUSED = 30
"""Seconds for which this computer may stand still."""
CHECK = CONFIG["http_service"]["checks"][0]
APP, TOKEN = "prints", "image-token-41c8"
SYSTEM_MB = 96
"""What web.sh leaves to the system."""


# As written ---------------------------------------------------------------------------------------------------------


def test_the_dockerfile_lints() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_hands_its_process_over(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "set -eu" in lines
    assert [line for line in lines if line.startswith("exec ")], "a shell in between would swallow SIGTERM"
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", script], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, script], check=True)


def test_the_context_has_what_is_copied_and_nothing_private() -> None:
    for path in ("manage.py", "demo_site", "demo_site/store/views.py", "machinequeue", "docker/web.sh", "LICENSE"):
        assert not ignored(path)
    for path in (".git", ".machinequeue/secret_key", ".env", "tests", "demo_site/db.sqlite3", "docker/Dockerfile"):
        assert ignored(path)
    assert ignored("demo_site/__pycache__/urls.cpython-313.pyc")


# As followed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    if django.VERSION < (6, 0):
        pytest.skip("the image has the newest Django")
    if (uv := find_uv()) is None:
        pytest.skip("uv is not here")
    return Image.build(tmp_path_factory.mktemp("image"), uv)


@pytest.fixture(scope="module")
def machine_env(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a machine of the app finds: the image's environment, the app's secrets, and a migrated database."""
    with services.postgres_database() as url:
        environment = {
            **image.environment,
            "FLY_APP_NAME": APP,
            "FLY_VM_MEMORY_MB": "256",
            "SECRET_KEY": secrets.token_hex(32),
            "DATABASE_URL": url,
            "HOME": str(tmp_path_factory.mktemp("home")),
        }
        release = shlex.split(CONFIG["deploy"]["release_command"])
        assert release[:2] == ["python", "manage.py"]
        _manage(image, environment, *release[2:])
        yield environment


def _manage(image: Image, environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        ["python", "manage.py", *words],
        cwd=image.at("/app"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


@contextlib.contextmanager
def _started(image: Image, process: str, log: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process group of fly.toml, started with its command; killed at the end if it is still there."""
    command = [image.here(word) for word in shlex.split(CONFIG["processes"][process])]
    with log.open("wb") as out:
        started = subprocess.Popen(
            command, cwd=image.at("/app"), env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


class Site:
    """The site on a port, asked as Fly's proxy asks it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers={"Host": f"{APP}.fly.dev", "X-Forwarded-Proto": "https", **headers})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def is_ready(self) -> bool:
        try:
            return self.get(CHECK["path"], **CHECK["headers"])[0] == 200
        except OSError:
            return False


@pytest.fixture
def web(image: Image, machine_env: dict[str, str], tmp_path: Path) -> Iterator[tuple[Site, "subprocess.Popen[bytes]"]]:
    site, log = Site(free_port()), tmp_path / "web.log"
    with _started(
        image, "web", log, {**machine_env, "BIND": f"127.0.0.1:{site.port}", "FLY_API_TOKEN": TOKEN}
    ) as process:
        until(site.is_ready, 60, log.read_text)
        yield site, process


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_image_has_the_wheel_and_compressed_static_files(image: Image, machine_env: dict[str, str]) -> None:
    assert len(image.followed) == 2, image.followed
    assert image.command == [image.here(CONFIG["processes"]["web"])]
    code = "import machinequeue; print(machinequeue.__file__)"
    where = _manage(image, machine_env, "shell", "--verbosity", "0", "-c", code)
    assert Path(where).is_relative_to(image.at("/venv"))
    static = image.at("/app/static")
    assert (static / "staticfiles.json").is_file()
    assert list(static.glob("store/store.*.css.gz"))
    assert "no issues" in _manage(
        image,
        {**machine_env, "FLY_API_TOKEN": TOKEN, "FLY_IMAGE_REF": "registry.fly.io/prints:1"},
        *("check", "--deploy", "--fail-level", "WARNING"),
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_web_serves_within_its_memory_and_ends_gracefully(
    web: tuple[Site, "subprocess.Popen[bytes]"], image: Image, machine_env: dict[str, str]
) -> None:
    site, process = web
    _manage(image, machine_env, "seed_store", "--purchases", "0")
    status, _, page = site.get("/")
    assert status == 200
    css = page.decode().partition('rel="stylesheet" href="')[2].partition('"')[0]
    status, headers, _ = site.get(css, **{"Accept-Encoding": "gzip"})
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert "immutable" in headers["cache-control"]
    assert site.get("/", **{"X-Forwarded-Proto": "http"})[0] == 301
    assert site.get("/", Host="elsewhere.example")[0] == 400

    paths = ["/", "/prints/GE-301/", "/checkout/", "/admin/login/", css]
    statuses: list[int] = []
    load = [threading.Thread(target=lambda: statuses.extend(site.get(path)[0] for path in paths * 6)) for _ in range(6)]
    for thread in load:
        thread.start()
    for thread in load:
        thread.join()
    assert statuses == [200] * len(paths) * 6 * 6

    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2, "workers in 256 MB"
    used = [each.memory_full_info() for each in (psutil.Process(process.pid), *children)]
    # Each one's own memory, and what they share once: more than any of it can be.
    whole = (sum(each.uss for each in used) + max(each.rss - each.uss for each in used)) / 2**20
    assert whole < 256 - SYSTEM_MB

    process.send_signal(signal.SIGTERM)
    assert process.wait(KILL_SECONDS + PAUSED) == 0
    assert not any(child.is_running() for child in children)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_process_of_the_site_has_the_token(web: tuple[Site, "subprocess.Popen[bytes]"]) -> None:
    parent = psutil.Process(web[1].pid)
    for process in (parent, *parent.children(recursive=True)):
        environment = process.environ()
        assert environment["SECRET_KEY"]
        assert TOKEN not in "".join(environment.values())


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_dispatcher_launches_machines_of_the_image_and_ends_gracefully(
    image: Image, machine_env: dict[str, str], tmp_path: Path
) -> None:
    shared = {name: machine_env[name] for name in ("SECRET_KEY", "DATABASE_URL", "DEMO_STATE_DIR", "STATIC_ROOT")}
    emulator = Emulator(
        app=APP,
        token=TOKEN,
        images={"local": (image.at("/app"), str(image.at("/venv/bin/python")))},
        secrets={**shared, "DJANGO_SETTINGS_MODULE": machine_env["DJANGO_SETTINGS_MODULE"], "FLY_API_TOKEN": TOKEN},
        env={"PATH": machine_env["PATH"]},
        state_dir=tmp_path / "emulator",
    )
    log = tmp_path / "dispatcher.log"
    with emulator:
        on_fly = {**machine_env, "FLY_API_HOSTNAME": emulator.url, "FLY_API_TOKEN": TOKEN, "FLY_IMAGE_REF": "local"}
        with _started(image, "dispatcher", log, on_fly) as process:
            _manage(image, machine_env, "seed_store", "--purchases", "0")
            code = (
                "from demo_site.store.models import Product\n"
                "from demo_site.store.tasks import make_pictures\n"
                "result = make_pictures.enqueue(Product.objects.get(sku='GE-301').pk)\n"
                "result.wait(timeout=90)\n"
                "print(result.status)"
            )
            said = _manage(image, machine_env, "shell", "--verbosity", "0", "-c", code)
            assert said.endswith("SUCCESSFUL"), f"{said}\n{log.read_text()}"
            process.send_signal(signal.SIGTERM)
            assert process.wait(KILL_SECONDS + PAUSED) == 0
    assert TOKEN not in log.read_text()
