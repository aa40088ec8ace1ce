"""The life of a machine, over real HTTP and with real processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from machinequeue.machines import errors
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.schema import CreateRequest, ExitEvent, Machine
from tests.machines.conftest import IMAGE, Create, python, until

FOREVER = "import signal; print('up', flush=True); signal.pause()"


def ended(client: MachinesClient, machine: Machine, state: str = "stopped") -> ExitEvent:
    client.wait(machine.id, state)
    event = client.get(machine.id).exit_event
    assert event is not None
    return event


def up(emulator: Emulator, machine: Machine) -> None:
    """Wait until the script of a machine has run its first line."""
    until(lambda: "up\n" in emulator.output(machine.id))


def pid_of(emulator: Emulator, machine: Machine) -> int:
    lines = [line for line in emulator.journal() if line.get("machine") == machine.id and line.get("type") == "start"]
    return int(lines[-1]["pid"])


def test_a_whole_life(emulator: Emulator, client: MachinesClient) -> None:
    config = python("print('hello'); raise SystemExit(3)", auto_destroy=True, metadata={"mq_machine": "life"})
    made = client.create(CreateRequest("whole-life", "cdg,eu", config))
    assert (made.state, made.name, made.region, len(made.id)) == ("created", "whole-life", "cdg", 14)
    assert made.image_digest.startswith("sha256:")
    assert client.wait(made.id, "destroyed") == "destroyed"

    gone = client.get(made.id)
    assert gone.state == "destroyed"
    assert [(event.type, event.status, event.source) for event in gone.events] == [
        ("destroy", "destroyed", "flyd"),
        ("exit", "stopped", "flyd"),
        ("start", "started", "flyd"),
        ("launch", "created", "user"),
    ]
    assert client.events(made.id) == gone.events
    assert gone.exit_event is not None
    assert (gone.exit_event.exit_code, gone.exit_event.signal, gone.exit_event.requested_stop) == (3, -1, False)
    assert gone.exit_event.exited_at is not None
    assert "hello\n" in emulator.output(made.id)
    assert client.list({"mq_machine": "life"}) == []
    assert [each.id for each in client.list({"mq_machine": "life"}, include_deleted=True)] == [made.id]
    with pytest.raises(errors.NotFound):
        client.wait(made.id, "started")


def test_the_journal_tells_of_the_life(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create(python("raise SystemExit(7)", env={"KEY": "must-not-be-written"}, auto_destroy=True))
    client.wait(made.id, "destroyed")
    lines = [line for line in emulator.journal() if line.get("machine") == made.id]
    request = next(line for line in lines if line["kind"] == "request")
    assert (request["method"], request["status"], request["name"]) == ("POST", 200, made.name)
    assert request["request_id"] == made.request_id
    events = {line["type"]: line for line in lines if line["kind"] == "event"}
    assert list(events) == ["launch", "start", "exit", "destroy"]
    assert events["start"]["pid"] > 1
    assert events["exit"]["exit_event"]["exit_code"] == 7
    whole = emulator.log_path.read_text()
    assert "must-not-be-written" not in whole
    assert emulator.token not in whole


ENVIRONMENT = "import os, json; print(json.dumps([dict(os.environ), os.getcwd()]))"


def environment(emulator: Emulator, client: MachinesClient, machine: Machine) -> tuple[dict[str, str], str]:
    client.wait(machine.id, "stopped")
    line = next(line for line in emulator.output(machine.id).splitlines() if line.startswith("[{"))
    found, where = json.loads(line)
    return found, where


def test_the_environment_is_clean(emulator: Emulator, client: MachinesClient, create: Create, image_dir: Path) -> None:
    guest = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 512}
    made = create(python(ENVIRONMENT, env={"MQ": "1"}, guest=guest))
    found, where = environment(emulator, client, made)
    machine = client.get(made.id)
    assert Path(where) == image_dir.resolve()
    assert {name: value for name, value in found.items() if name not in ("PATH", "HOME", "LANG", "LC_CTYPE")} == {
        "DATABASE_URL": "postgres://secret-of-the-app",
        "OTHER_KEY": "other-secret",
        "MQ": "1",
        "FLY_APP_NAME": "shop",
        "FLY_MACHINE_ID": made.id,
        "FLY_ALLOC_ID": made.id,
        "FLY_REGION": "iad",
        "FLY_IMAGE_REF": IMAGE,
        "FLY_PRIVATE_IP": machine.private_ip,
        "FLY_MACHINE_VERSION": machine.instance_id,
        "FLY_VM_MEMORY_MB": "512",
    }


@pytest.mark.parametrize(
    ("process", "fields", "secrets"),
    [
        ({}, {"skip_secrets": True}, {}),
        ({"ignore_app_secrets": True}, {}, {}),
        (
            {
                "ignore_app_secrets": True,
                "secrets": [{"env_var": "DB", "name": "DATABASE_URL"}, {"env_var": "OTHER_KEY"}],
            },
            {},
            {"DB": "postgres://secret-of-the-app", "OTHER_KEY": "other-secret"},
        ),
    ],
)
def test_secrets_can_be_withheld(
    emulator: Emulator,
    client: MachinesClient,
    create: Create,
    process: dict[str, Any],
    fields: dict[str, Any],
    secrets: dict[str, str],
) -> None:
    command = {"entrypoint": ["python"], "cmd": ["-c", ENVIRONMENT]}
    made = create({"image": IMAGE, "restart": {"policy": "no"}, "processes": [{**command, **process}]}, **fields)
    found, _ = environment(emulator, client, made)
    assert {name: found[name] for name in ("DB", "DATABASE_URL", "OTHER_KEY") if name in found} == secrets


def test_a_stop_is_graceful_and_remembered_as_asked_for(
    emulator: Emulator, client: MachinesClient, create: Create
) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print('up', flush=True)\n"
        "signal.pause()"
    )
    made = create(python(code))
    up(emulator, made)
    client.stop(made.id, "SIGTERM", "30s")
    event = ended(client, made)
    assert (event.exit_code, event.signal, event.requested_stop) == (0, -1, True)
    client.stop(made.id)  # it rests already
    assert client.start(made.id) == "stopped"
    with pytest.raises(errors.Conflict):
        client.start(made.id)
    with pytest.raises(errors.Conflict):
        client.destroy(made.id)
    client.destroy(made.id, force=True)
    assert client.wait(made.id, "destroyed") == "destroyed"
    client.destroy(made.id, force=True)


def test_the_default_stop_signal_is_the_config_s(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create(python(FOREVER, stop_config={"signal": "SIGUSR1", "timeout": "10s"}))
    up(emulator, made)
    client.stop(made.id)
    event = ended(client, made)
    assert (event.exit_code, event.signal) == (128 + signal.SIGUSR1, signal.SIGUSR1)


def test_who_ignores_the_signal_is_killed(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    code = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
    made = create(python(code))
    up(emulator, made)
    client.stop(made.id, "SIGTERM", "200ms")
    event = ended(client, made)
    assert (event.exit_code, event.signal, event.requested_stop) == (137, 9, True)


def test_a_signal_reaches_the_process(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create(python(FOREVER))
    up(emulator, made)
    client.signal(made.id, "SIGUSR2")
    event = ended(client, made)
    assert (event.signal, event.requested_stop) == (signal.SIGUSR2, False)
    with pytest.raises(errors.Conflict):
        client.signal(made.id, "SIGUSR2")


def test_signals_have_their_usual_meaning_in_a_machine(
    emulator: Emulator, client: MachinesClient, create: Create
) -> None:
    made = create({**python(""), "init": {"exec": ["sh", "-c", "yes | head -1; kill -PIPE $$"]}})
    assert ended(client, made).signal == signal.SIGPIPE
    assert "y\n" in emulator.output(made.id)


TREE = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print('grandchild', os.getpid(), flush=True)
        signal.pause()
    os._exit(0)
signal.pause()
"""


def test_nobody_outlives_the_machine(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create(python(TREE))
    words = until(lambda: [line.split() for line in emulator.output(made.id).splitlines() if "grandchild" in line])
    grandchild = psutil.Process(int(words[0][1]))
    client.signal(made.id, "SIGKILL")
    ended(client, made)
    assert not grandchild.is_running()


def test_a_command_that_is_not_there(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create({**python(""), "init": {"exec": ["no-such-program"]}})
    assert ended(client, made).exit_code == 127
    assert "could not run no-such-program" in emulator.output(made.id)


GREEDY = "import os, sys\nblock = bytearray(400 << 20)\nprint('grown', flush=True)\nimport signal\nsignal.pause()"


def test_out_of_memory(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create(python(GREEDY, guest={"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}))
    event = ended(client, made)
    assert (event.oom_killed, event.exit_code, event.requested_stop) == (True, 137, False)
    assert "Out of memory: Killed process" in emulator.output(made.id)


def test_a_survivor_of_a_child_s_memory_death_reports_its_own_end(
    emulator: Emulator, client: MachinesClient, create: Create
) -> None:
    code = f"import subprocess, sys\nprint(subprocess.call([sys.executable, '-c', {GREEDY!r}]))\nraise SystemExit(5)"
    made = create(python(code, guest={"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}))
    event = ended(client, made)
    assert (event.oom_killed, event.exit_code) == (False, 5)
    assert "-9\n" in emulator.output(made.id)


SHARED = """
import os, signal
block = bytearray(120 << 20)
for _ in range(4):
    if os.fork() == 0:
        signal.pause()
print('up', flush=True)
signal.sigtimedwait([signal.SIGUSR1], 1.0)
print('survived', flush=True)
"""


def test_pages_shared_by_forks_count_once(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create(python(SHARED, guest={"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}))
    event = ended(client, made)
    assert (event.oom_killed, event.exit_code) == (False, 0)
    assert "survived" in emulator.output(made.id)


def test_a_failing_machine_restarts_as_often_as_it_may(client: MachinesClient, create: Create) -> None:
    made = create(python("raise SystemExit(4)", restart={"policy": "on-failure", "max_retries": 2}))
    client.wait(made.id, "stopped")
    exits = [event for event in client.events(made.id, 50) if event.exit]
    assert [event.exit.restarting for event in exits if event.exit] == [False, True, True]
    assert [event.raw["request"]["restart_count"] for event in exits] == [2, 2, 1]


def test_restart_is_the_default_and_success_ends_it(
    emulator: Emulator, client: MachinesClient, create: Create, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    code = f"import pathlib\np = pathlib.Path({str(seen)!r})\nif not p.exists():\n  p.touch()\n  raise SystemExit(1)"
    config = python(code, auto_destroy=True)
    del config["restart"]
    made = create(config)
    client.wait(made.id, "destroyed")
    assert [event.exit.exit_code for event in client.events(made.id) if event.exit] == [0, 1]


def test_restart_by_hand_keeps_the_machine(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create(python(FOREVER))
    up(emulator, made)
    first = pid_of(emulator, made)
    client.restart(made.id, "SIGTERM")
    until(lambda: pid_of(emulator, made) != first)
    assert client.wait(made.id, "started") == "started"
    event = client.get(made.id).exit_event
    assert event is not None
    assert (event.restarting, event.requested_stop) == (True, True)


def test_skip_launch_prepares_and_rests(client: MachinesClient, create: Create) -> None:
    made = create(python("raise SystemExit(0)"), skip_launch=True)
    assert made.state == "created"
    assert client.wait(made.id, "stopped") == "stopped"
    assert client.get(made.id).exit_event is None
    client.start(made.id)
    assert ended(client, made).exit_code == 0


def test_a_lost_init_is_a_killed_machine(emulator: Emulator, client: MachinesClient, create: Create) -> None:
    made = create(python(TREE))
    words = until(lambda: [line.split() for line in emulator.output(made.id).splitlines() if "grandchild" in line])
    grandchild, main = psutil.Process(int(words[0][1])), psutil.Process(pid_of(emulator, made))
    init = main.parent()
    assert init is not None
    init.kill()
    assert ended(client, made).exit_code == 137
    assert not psutil.wait_procs([grandchild, main], timeout=60)[1]
