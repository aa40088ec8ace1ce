"""The emulator as a program: how it starts, what its options do, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import psutil
import pytest

from machinequeue.machines import errors
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.emulator.options import parse, secrets_from
from machinequeue.machines.emulator.process import EmulatorError
from machinequeue.machines.schema import CreateRequest
from tests.machines.conftest import PendingWait, until

COMMAND = [sys.executable, "-m", "machinequeue.machines.emulator"]
STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        break
print('up', flush=True)
while True:
    signal.pause()
"""


def config(code: str) -> dict[str, object]:
    return {"image": "app:latest", "init": {"cmd": ["python", "-c", code]}, "restart": {"policy": "no"}}


def family(emulator: Emulator) -> list[psutil.Process]:
    """The emulator, its host, the inits and all that runs in the machines."""
    root = psutil.Process(emulator.pid)
    return [root, *root.children(recursive=True)]


def started(emulator: Emulator, count: int) -> list[psutil.Process]:
    with emulator.client() as client:
        made = [client.create(CreateRequest(f"m-{number}", None, config(STUBBORN))) for number in range(count)]
    until(lambda: all(emulator.output(machine.id).count("up") == 3 for machine in made))
    everybody = family(emulator)
    assert len(everybody) == 2 + count * 4
    return everybody


def test_killing_the_emulator_leaves_nobody() -> None:
    with Emulator() as emulator:
        everybody = started(emulator, 3)
        emulator.kill()
        assert not psutil.wait_procs(everybody, timeout=60)[1]


def test_a_graceful_end_leaves_nobody_and_answers_who_waits(tmp_path: Path) -> None:
    with Emulator(state_dir=tmp_path) as emulator:
        everybody = started(emulator, 2)
        waiting = PendingWait(emulator, emulator.machines()[0].id, "destroyed")
        emulator.stop()
        assert not psutil.wait_procs(everybody, timeout=60)[1]
    assert '"state":"destroyed"' in waiting.answer()
    assert (tmp_path / "emulator.stderr").read_text() == ""


def test_it_ends_with_its_host() -> None:
    with Emulator() as emulator:
        everybody = started(emulator, 1)
        host = next(process for process in everybody if process.name() == "mq-host")
        host.kill()
        assert not psutil.wait_procs(everybody, timeout=60)[1]


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "from machinequeue.machines.emulator import Emulator\n"
        f"emulator = Emulator(state_dir={str(tmp_path)!r}).start()\n"
        "print(emulator.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    pid = int(done.stdout)
    until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_line(tmp_path: Path, number: int) -> None:
    port_file = tmp_path / "port"
    words = ["--port", "0", "--port-file", str(port_file), "--state-dir", str(tmp_path), "--app", "one", "--app", "two"]
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"emulator ready on http://127.0.0.1:{port_file.read_text().strip()}\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmulatorError, match=f"port {port} cannot be used"):
            Emulator(port=port).start()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image", "nonsense"], "an image is REF=DIR or REF=DIR:PYTHON"),
        (["--image", "app:1=/no/such/place"], "there is no directory /no/such/place"),
        (["--image", "app:1=/tmp:/no/python"], "/no/python is not a program"),
        (["--secret", "hunter2-hunter2"], "a secret is NAME=VALUE"),
        (["--port", "99999"], "a port is a number from 0 to 65535"),
        (["--state-dir", "/dev/null/x"], "/dev/null/x cannot be made"),
        (["--region", "moon"], "invalid choice: 'moon'"),
        (["--app", "Not A Name"], "may have lower-case letters"),
        (["--port-file", "/nonexistent/x"], "/nonexistent/x cannot be written"),
    ],
)
def test_bad_options_are_explained(words: list[str], said: str) -> None:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("given", ["[1]", "{bad-hunter2", '{"A": 1}', '"hunter2"'])
def test_secrets_that_are_no_object_of_strings_are_explained(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([], {"MACHINES_EMULATOR_SECRETS": given})
    said = capsys.readouterr().err
    assert "MACHINES_EMULATOR_SECRETS must be a JSON object of strings" in said
    assert "hunter2" not in said


def test_a_secret_s_name_and_an_empty_token_are_explained() -> None:
    with pytest.raises(EmulatorError, match="a secret's name has letters, digits and underscores, not 'a b'") as caught:
        Emulator(secrets={"a b": "hunter2"}).start()
    assert "hunter2" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(ValueError, match="token must not be empty"):
        Emulator(token="")


def test_the_environment_becomes_secrets_as_far_as_it_is_an_application_s() -> None:
    surroundings = {
        "DATABASE_URL": "postgres://",
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "PATH": "/bin",
        "HOME": "/root",
        "FLY_API_TOKEN": "fm2_x",
        "FLY_APP_NAME": "a",
        "LC_ALL": "C",
        "_": "x",
        "VIRTUAL_ENV": "/v",
        "MACHINES_EMULATOR_SECRETS": "{}",
        "LD_PRELOAD": "x",
        "MAKEFLAGS": "x",
        "SSH_AUTH_SOCK": "x",
        "not-a-name": "x",
    }
    own = ("LD_SDK_KEY", "GIT_TOKEN", "MAKE_API_KEY", "PIP_KEY", "UV_INDEX_KEY", "MAIL", "TZ", "SSH_KEY", "PYTHONANY")
    surroundings |= dict.fromkeys(own, "of the application")
    assert set(secrets_from(surroundings)) == {"DATABASE_URL", "DJANGO_SETTINGS_MODULE", *own}
    options = parse(["--env-secrets", "--secret", "A=1=2", "--state-dir", "/tmp/x"], surroundings)
    assert options.secrets == {**secrets_from(surroundings), "A": "1=2"}
    assert options.token == "fm2_x"
    assert "postgres" not in repr(options)
    assert "fm2_x" not in repr(options)


def test_secrets_of_the_environment_reach_a_machine_and_no_command_line() -> None:
    surroundings = {**os.environ, "APP_KEY": "from-the-environment"}
    with Emulator(env=surroundings, env_secrets=True, secrets={"OWN": "given"}, token="token-not-for-argv") as emulator:
        with emulator.client() as client:
            assert {"APP_KEY", "OWN"} <= set(client.secrets())
            show = config("import os; print(os.environ['APP_KEY'], os.environ['OWN'])")
            made = client.create(CreateRequest("show", None, show))
            client.wait(made.id, "stopped")
            assert "from-the-environment given\n" in emulator.output(made.id)
        line = " ".join(psutil.Process(emulator.pid).cmdline())
        assert not {"token-not-for-argv", "given", "from-the-environment"} & set(line.split())


def test_rate_limits_are_fly_s() -> None:
    with Emulator(rate_limits=True) as emulator, emulator.client() as client:
        requests = (CreateRequest(f"m-{number}", None, config("pass"), skip_launch=True) for number in range(20))
        with pytest.raises(errors.RateLimited) as caught:
            deque(map(client.create, requests))
        assert len(emulator.machines()) >= 3
        assert caught.value.message == "resource_exhausted: rate limit exceeded"
        machine = client.list()[0]
        for _ in range(10):
            client.get(machine.id)


def test_many_machines_at_once() -> None:
    with Emulator() as emulator, emulator.client() as client:
        asleep = {**config(""), "init": {"exec": ["sleep", "1000"]}}
        for number in range(60):
            client.create(CreateRequest(f"m-{number}", None, asleep))
        until(lambda: sum(machine.state == "started" for machine in client.list()) == 60)
        assert len(family(emulator)) == 2 + 60 * 2


def test_two_emulators_give_their_machines_different_addresses() -> None:
    """On one computer a server of one would else answer the requests for another."""
    sleep = {"skip_launch": True}
    with Emulator() as one, Emulator() as other, one.client() as mine, other.client() as theirs:
        request = CreateRequest("m", None, config("pass"), **sleep)
        assert mine.create(request).private_ip != theirs.create(request).private_ip
