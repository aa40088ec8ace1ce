"""docs/how-to/deploy-to-fly.md, followed literally on a project that startproject makes: all of it but Fly itself."""

import contextlib
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import django
import pytest

from machinequeue.machines.emulator import Emulator
from tests import services
from tests.ports import free_port
from tests.project import fly_toml
from tests.project.guide import Command, File, steps
from tests.project.image import ROOT, find_uv
from tests.waiting import until

PAGE = ROOT / "docs/how-to/deploy-to-fly.md"
STEPS = steps(PAGE)
FILES = {step.path: step.content for step in STEPS if isinstance(step, File)}
FLY: dict[str, Any] = tomllib.loads(FILES["fly.toml"])
TOKEN = "guide-token-77ab"
KILL_SECONDS = fly_toml.seconds(FLY["kill_timeout"])
PAUSED = 30
"""Seconds for which this computer may stand still."""
FLYCTL = {
    "apps create": set(),
    "mpg create": {"--name", "--region"},
    "secrets set": {"--app", "--stage"},
    "deploy": {"--app"},
    "status": {"--app"},
    "ssh console": {"--app", "--process-group", "--command"},
}
"""The commands of flyctl on the page, and their options that it may use; https://fly.io/docs/flyctl/ lists them."""


@dataclass
class Reader:
    """Who follows the page, in a folder and a virtual environment of their own."""

    folder: Path
    uv: str
    wheels: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, line: str, **more: str) -> str:
        """Type a line; what it printed. Raises AssertionError with both outputs when it fails."""
        done = subprocess.run(
            ["/bin/bash", "-c", line],
            cwd=self.folder,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"$ {line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    def install(self, requirements: str) -> None:
        """`pip install -r`, from the package index of this computer and the wheel of this checkout."""
        words = [self.uv, "pip", "install", "--python", str(self.folder / ".venv/bin/python")]
        words += ["--constraint", str(ROOT / "constraints.txt"), "--find-links", str(self.wheels)]
        subprocess.run([*words, "-r", requirements], cwd=self.folder, check=True, capture_output=True)

    @contextlib.contextmanager
    def started(self, line: str, **more: str) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
        """A command that keeps running, and its log; killed with its children at the end."""
        log = self.folder.parent / f"{re.sub(r'\W+', '-', line)[:40]}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["/bin/bash", "-c", f"exec {line}"],
                cwd=self.folder,
                env={**self.environment, **more},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str, **headers: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """After steps 1 to 7, with the commands between them done and checked."""
    if django.VERSION < (6, 0):
        pytest.skip("the page installs the newest Django")
    if (uv := find_uv()) is None:
        pytest.skip("uv is not here")
    root = tmp_path_factory.mktemp("guide")
    folder, wheels = root / "mysite", root / "wheels"
    folder.mkdir()
    subprocess.run([uv, "build", "--wheel", "--out-dir", wheels, ROOT], check=True, capture_output=True)
    subprocess.run([uv, "venv", "--python", sys.executable, folder / ".venv"], check=True, capture_output=True)
    environment = {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "HOME": str(root), "PYTHONUNBUFFERED": "1"}
    reader = Reader(folder, uv, wheels, environment)
    # mq_dev's own ports may be taken here.
    site, local = free_port(), {"FLY_API_HOSTNAME": f"http://127.0.0.1:{free_port()}"}
    with contextlib.ExitStack() as running:
        for step in STEPS:
            if isinstance(step, File):
                step.put(folder)
            elif step.line.startswith("python -m pip install -r "):
                reader.install(step.line.split()[-1])
            elif step.line.endswith(" mq_dev"):
                line = f"{step.line} 127.0.0.1:{site} --noreload"
                _, log = running.enter_context(reader.started(line, **local))
                until(lambda log=log: "Dispatcher" in log.read_text(), 60, log.read_text)  # type: ignore[misc]
                until(lambda: _answers(f"http://127.0.0.1:{site}/ht/ready/"), 60, log.read_text)
            elif not step.line.startswith(("fly ", "curl ")):
                more = {} if step.line.startswith("PRODUCTION=") else local
                assert step.prints in reader.run(step.line, **more)
    return reader


def _production(url: str) -> dict[str, str]:
    """What a machine of the app finds: ENV of the image, [env] of fly.toml, and the secrets of step 8."""
    (line,) = re.findall(r"^ENV (.*)$", FILES["Dockerfile"], re.MULTILINE)
    return {
        **dict(pair.split("=", 1) for pair in line.split()),
        **FLY["env"],
        "FLY_APP_NAME": FLY["app"],
        "SECRET_KEY": secrets.token_hex(32),
        "DATABASE_URL": url,
    }


def _of_fly() -> list[list[str]]:
    return [shlex.split(step.line)[1:] for step in STEPS if isinstance(step, Command) and step.line.startswith("fly ")]


def test_the_page_has_ten_steps() -> None:
    assert re.findall(r"^## (\d+)\. ", PAGE.read_text(), re.MULTILINE) == [str(number) for number in range(1, 11)]


def test_every_key_of_its_fly_toml_is_documented() -> None:
    assert fly_toml.problems(FLY) == []
    assert set(FLY["processes"]) == {"web", "dispatcher"}
    assert f":{FLY['http_service']['internal_port']} " in FLY["processes"]["web"]
    assert FLY["env"]["ALLOWED_HOSTS"] == f"{FLY['app']}.fly.dev"


def test_its_dockerfile_lints(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(FILES["Dockerfile"])
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_its_commands_of_flyctl_exist_and_mean_the_same_app() -> None:
    seen = set()
    for words in _of_fly():
        name = next(name for name in FLYCTL if words[: len(name.split())] == name.split())
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= FLYCTL[name], name
        assert FLY["app"] in words or name == "mpg create"
        seen.add(name)
    assert seen == set(FLYCTL)


def test_its_costs_are_those_of_the_price_list() -> None:
    def price(kind: str, cpus: int, memory_mb: int, seconds: float) -> str:
        rates = {"shared": (0.0000008465, 0.25), "performance": (0.000012732, 2)}  # 2026-10, iad and ewr
        each, included = rates[kind]
        return f"{seconds * (cpus * each + (memory_mb / 1024 - cpus * included) * 0.000002316):.2f}"

    month = 30 * 24 * 3600
    for row, amount in {
        "| site | shared-cpu-1x, 256 MB |": f"{price('shared', 1, 256, month)} in 30 days",
        "| dispatcher | shared-cpu-1x, 256 MB |": f"{price('shared', 1, 256, month)} in 30 days",
        "| 1,000 tasks of 10 seconds | shared-cpu-1x, 512 MB |": price("shared", 1, 512, 10_000),
        "| 10,000 tasks of one minute | shared-cpu-1x, 512 MB |": price("shared", 1, 512, 600_000),
        "| 100 tasks of ten minutes | performance-2x, 4096 MB |": price("performance", 2, 4096, 60_000),
        "| two stopped spares | 0.5 GB of image each |": f"{2 * 0.5 * 0.15:.2f} in 30 days",
    }.items():
        assert f"{row} {amount} |" in PAGE.read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_new_project_follows_the_page_to_its_first_task(reader: Reader, tmp_path: Path) -> None:
    build = next(line for line in FILES["Dockerfile"].replace("\\\n", "").splitlines() if "collectstatic" in line)
    reader.run(build.removeprefix("RUN "), PRODUCTION="1")
    assert (reader.folder / "static/staticfiles.json").is_file()
    with services.postgres_database() as url:
        shared = _production(url)
        reader.run(FLY["deploy"]["release_command"], **shared)

        port = free_port()
        web = FLY["processes"]["web"].replace("[::]:8080", f"127.0.0.1:{port}")
        headers = FLY["http_service"]["checks"][0]["headers"]
        ready = f"http://127.0.0.1:{port}{FLY['http_service']['checks'][0]['path']}"
        with reader.started(web, **shared) as (process, log):
            until(lambda: _answers(ready, **headers), 60, log.read_text)
            assert _answers(f"http://127.0.0.1:{port}/admin/login/", Host=f"{FLY['app']}.fly.dev", **headers)
            process.send_signal(signal.SIGTERM)
            assert process.wait(KILL_SECONDS + PAUSED) == 0

        _first_task(reader, shared, tmp_path)


def _first_task(reader: Reader, shared: dict[str, str], tmp_path: Path) -> None:
    """Step 10, with the emulator where Fly would be: the dispatcher of fly.toml, the token as a secret of the app."""
    emulator = Emulator(
        app=FLY["app"],
        token=TOKEN,
        images={"local": (reader.folder, str(reader.folder / ".venv/bin/python"))},
        secrets={**{name: value for name, value in shared.items() if name != "FLY_APP_NAME"}, "FLY_API_TOKEN": TOKEN},
        env={"PATH": reader.environment["PATH"]},
        state_dir=tmp_path / "emulator",
    )
    with emulator:
        on_fly = {**shared, "FLY_API_HOSTNAME": emulator.url, "FLY_API_TOKEN": TOKEN, "FLY_IMAGE_REF": "local"}
        (first,) = [step for step in STEPS if isinstance(step, Command) and step.line.startswith("fly ssh console")]
        words = shlex.split(first.line)
        with reader.started(FLY["processes"]["dispatcher"], **on_fly) as (process, log):
            typed = words[words.index("--command") + 1].replace("/app/", f"{reader.folder}/")
            said = reader.run(typed, **on_fly)
            assert said.splitlines()[-1] == first.prints, log.read_text()
            launched = [each.name for each in emulator.machines()]
            assert [name for name in launched if name.startswith("mq-default-")], launched
            process.send_signal(signal.SIGTERM)
            assert process.wait(KILL_SECONDS + PAUSED) == 0
