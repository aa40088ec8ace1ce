"""Further commands in a running machine, and machines of several processes."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.emulator.executions import KEPT_BYTES
from tests.machines.conftest import IMAGE, Create, python, raw_client, until

MACHINES = "/v1/apps/shop/machines"
FOREVER = "import signal; print('up', flush=True); signal.pause()"


def execute(http: httpx.Client, machine: str, command: list[str], **body: Any) -> dict[str, Any]:
    answer = http.post(f"{MACHINES}/{machine}/exec", json={"command": command, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def machine(emulator: Emulator, client: MachinesClient, create: Create) -> str:
    made = create(python(FOREVER, env={"KEY": "of the machine"}))
    client.wait(made.id, "started")
    until(lambda: "up\n" in emulator.output(made.id))
    return made.id


def test_a_command_runs_in_the_machine(http: httpx.Client, machine: str, image_dir: Path) -> None:
    code = "import os, sys; print(os.environ['KEY'], os.environ['FLY_MACHINE_ID'], os.getcwd()); sys.exit(3)"
    answer = execute(http, machine, ["python", "-c", code])
    shown = f"of the machine {machine} {image_dir.resolve()}\n"
    assert answer == {"exit_code": 3, "exit_signal": 0, "stdout": shown, "stderr": ""}


def test_both_outputs_and_the_input(http: httpx.Client, machine: str) -> None:
    answer = execute(http, machine, ["sh", "-c", "cat; echo wrong >&2"], stdin="given\u00e9\n")
    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("given\u00e9\n", "wrong\n", 0)
    assert execute(http, machine, ["cat"])["stdout"] == ""


def test_a_command_may_be_one_line(http: httpx.Client, machine: str) -> None:
    answer = http.post(f"{MACHINES}/{machine}/exec", json={"cmd": "echo 'two words'  more"})
    assert answer.json()["stdout"] == "two words more\n"


def test_a_command_that_is_killed_or_missing(http: httpx.Client, machine: str) -> None:
    killed = execute(http, machine, ["sh", "-c", "kill -TERM $$"])
    assert (killed["exit_code"], killed["exit_signal"]) == (128 + signal.SIGTERM, signal.SIGTERM)
    missing = execute(http, machine, ["no-such-program"])
    assert missing["exit_code"] == 127
    assert "could not run no-such-program" in missing["stderr"]


def test_long_words_and_long_outputs(http: httpx.Client, machine: str) -> None:
    assert execute(http, machine, ["printf", "%s", "x" * 100_000])["stdout"] == "x" * 100_000
    answer = execute(http, machine, ["sh", "-c", f"yes | head -c {3 * KEPT_BYTES}; yes | head -c 300000 >&2"])
    assert (len(answer["stdout"]), len(answer["stderr"]), answer["exit_code"]) == (KEPT_BYTES, 300_000, 0)
    assert execute(http, machine, ["printf", "\\377"])["stdout"] == "\ufffd"


def test_who_stays_behind_is_not_waited_for(http: httpx.Client, machine: str) -> None:
    answer = execute(http, machine, ["sh", "-c", "sleep 1000 & echo $!"])
    left = psutil.Process(int(answer["stdout"]))
    assert left.is_running()
    http.post(f"{MACHINES}/{machine}/stop", json={"signal": "SIGKILL"})
    assert not psutil.wait_procs([left], timeout=60)[1]


def test_a_command_that_takes_too_long_is_killed(http: httpx.Client, machine: str, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    words = ["sh", "-c", f"sleep 1000 & echo $$ $! > {note}; wait"]
    answer = http.post(f"{MACHINES}/{machine}/exec", json={"command": words, "timeout": 1})
    assert answer.status_code == 408
    assert answer.json()["error"].startswith("deadline_exceeded")
    for pid in note.read_text().split():
        until(lambda pid=pid: not psutil.pid_exists(int(pid)))
    assert execute(http, machine, ["true"])["exit_code"] == 0


def test_a_command_dies_with_its_machine(http: httpx.Client, emulator: Emulator, machine: str) -> None:
    words = ["sh", "-c", f"kill -KILL {main_pid(emulator, machine)}; sleep 1000"]
    answer = execute(http, machine, words)
    assert (answer["exit_code"], answer["exit_signal"]) == (137, 9)


def test_a_command_counts_in_the_machine_s_memory(http: httpx.Client, emulator: Emulator, machine: str) -> None:
    code = "block = bytearray(400 << 20); import signal; signal.pause()"
    answer = execute(http, machine, ["python", "-c", code])
    assert (answer["exit_code"], answer["exit_signal"]) == (137, 9)
    assert "Out of memory: Killed process" in emulator.output(machine)
    assert http.get(f"{MACHINES}/{machine}").json()["state"] == "started"


def test_commands_hold_nobody_up(http: httpx.Client, emulator: Emulator, machine: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    slow = [Held(emulator, machine, ["sh", "-c", f"while [ ! -e {told} ]; do sleep 0.02; done"]) for _ in range(5)]
    assert http.get(f"{MACHINES}/{machine}").json()["state"] == "started"
    assert execute(http, machine, ["echo", "quick"])["stdout"] == "quick\n"
    told.touch()
    assert all('"exit_code":' in each.answer() for each in slow)


class Held:
    """An exec whose answer is read later."""

    def __init__(self, emulator: Emulator, machine: str, command: list[str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", int(emulator.url.rpartition(":")[2])), timeout=20)
        request = httpx.Request(
            "POST",
            f"{emulator.url}{MACHINES}/{machine}/exec",
            json={"command": command},
            headers={"Authorization": f"Bearer {emulator.token}", "Connection": "close"},
        )
        head = f"POST {request.url.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
        self._socket.sendall(head.encode() + b"\r\n" + request.read())

    def answer(self) -> str:
        with self._socket, self._socket.makefile("r", encoding="utf-8", newline="") as file:
            return file.read()


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "command must be a list of strings"),
    ({"command": []}, 400, "command must be"),
    ({"command": "ls"}, 400, "command must be"),
    ({"command": [1]}, 400, "command must be"),
    ({"command": ["a\0b"]}, 400, "NUL"),
    ({"cmd": "echo 'half"}, 400, "cmd: No closing quotation"),
    ({"cmd": "  "}, 400, "command must be"),
    ({"command": ["ls"], "timeout": -1}, 400, "timeout must be"),
    ({"command": ["ls"], "timeout": "10s"}, 400, "timeout must be"),
    ({"command": ["ls"], "stdin": 7}, 400, "stdin must be"),
    ({"command": ["ls"], "container": "web"}, 501, "container is not emulated"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD)
def test_a_bad_exec_is_refused(
    http: httpx.Client, create: Create, body: dict[str, Any], status: int, words: str
) -> None:
    made = create(python("pass"), skip_launch=True)
    answer = http.post(f"{MACHINES}/{made.id}/exec", json=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_machine_at_rest_runs_no_command(http: httpx.Client, client: MachinesClient, create: Create) -> None:
    made = create(python("pass"), skip_launch=True)
    client.wait(made.id, "stopped")
    answer = http.post(f"{MACHINES}/{made.id}/exec", json={"command": ["true"]})
    assert answer.status_code == 412
    assert "unable to exec on machine from current state: 'stopped'" in answer.json()["error"]


# -- several processes ------------------------------------------------------------------------------------------------


def main_pid(emulator: Emulator, machine: str) -> int:
    lines = [line for line in emulator.journal() if line.get("machine") == machine]
    return int([line["pid"] for line in lines if "pid" in line][-1])


def several(*processes: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {"image": IMAGE, "restart": {"policy": "no"}, "processes": [*processes], **config}


def script(code: str, **process: Any) -> dict[str, Any]:
    return {"cmd": ["python", "-c", code], **process}


WAITING = "import os, signal; print(os.environ['NAME'], 'db' if 'DATABASE_URL' in os.environ else '-', flush=True); "


def test_processes_have_environments_of_their_own(emulator: Emulator, create: Create) -> None:
    forever = WAITING + "signal.pause()"
    create_one = several(
        script(forever, env={"NAME": "web"}, user="nobody"),
        script(forever, env={"NAME": "worker"}, ignore_app_secrets=True),
        script(forever, ignore_app_secrets=True, secrets=[{"env_var": "DATABASE_URL"}]),
        env={"NAME": "of the machine"},
    )
    made = create(create_one)
    lines = {"web db", "worker -", "of the machine db"}
    until(lambda: lines <= set(emulator.output(made.id).splitlines()))


@pytest.mark.parametrize("code", [0, 7])
def test_the_machine_ends_with_the_first_of_them(
    emulator: Emulator, client: MachinesClient, create: Create, code: int
) -> None:
    made = create(several(script(FOREVER), script(f"raise SystemExit({code})")))
    client.wait(made.id, "stopped")
    event = client.get(made.id).exit_event
    assert event is not None
    assert (event.exit_code, event.requested_stop) == (code, False)
    assert not psutil.pid_exists(main_pid(emulator, made.id))


def test_a_stop_lets_each_of_them_finish(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    slow = (
        "import signal, threading\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "print('up', flush=True)\n"
        "signal.sigwait([signal.SIGTERM])\n"
        "threading.Event().wait(0.3)\n"
        "print('finished', flush=True)"
    )
    made = create(several(script(FOREVER), script(slow)))
    until(lambda: emulator.output(made.id).count("up\n") == 2)
    client.stop(made.id, "SIGTERM", "30s")
    client.wait(made.id, "stopped")
    assert "finished\n" in emulator.output(made.id)


def test_a_stop_kills_those_who_do_not_heed_it(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
    made = create(several(script(stubborn), script(stubborn)))
    until(lambda: emulator.output(made.id).count("up\n") == 2)
    client.stop(made.id, "SIGTERM", "200ms")
    client.wait(made.id, "stopped")
    event = client.get(made.id).exit_event
    assert event is not None
    assert (event.exit_code, event.signal) == (137, 9)


def test_when_one_cannot_be_run_none_runs(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create(several(script(FOREVER), {"exec": ["no-such-program"]}))
    client.wait(made.id, "stopped")
    event = client.get(made.id).exit_event
    assert event is not None
    assert event.exit_code == 127
    assert "could not run no-such-program" in emulator.output(made.id)


# -- nobody is left ---------------------------------------------------------------------------------------------------


def test_killing_the_emulator_leaves_no_command_and_no_process(image_dir: Path) -> None:
    with Emulator(app="shop", images={IMAGE: image_dir}) as emulator, raw_client(emulator) as http:
        made = http.post(MACHINES, json={"config": several(script(FOREVER), script(FOREVER))}).json()["id"]
        assert http.get(f"{MACHINES}/{made}/wait", params={"state": "started"}).status_code == 200
        until(lambda: emulator.output(made).count("up\n") == 2)
        held = Held(emulator, made, ["sh", "-c", "setsid sleep 1000 & sleep 1000"])
        root = psutil.Process(emulator.pid)
        # emulator, host, init, two processes, and of the command: the shell and its two children
        until(lambda: len(root.children(recursive=True)) == 7)
        everybody = [root, *root.children(recursive=True)]
        emulator.kill()
        assert not psutil.wait_procs(everybody, timeout=60)[1]
        held.answer()


# -- addresses --------------------------------------------------------------------------------------------------------

SERVER = """
import os, socket
listener = socket.create_server((os.environ['FLY_PRIVATE_IP'], {port}))
print('listening', flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(os.environ['FLY_MACHINE_ID'].encode())
    connection.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers on all of 127.0.0.0/8")
def test_two_machines_listen_on_one_port(emulator: Emulator, create: Create) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = [create(python(SERVER.format(port=port))) for _ in range(2)]
    for machine in made:
        until(lambda machine=machine: "listening\n" in emulator.output(machine.id))
        with socket.create_connection((machine.private_ip, port), timeout=10) as connection:
            assert connection.makefile().read() == machine.id
