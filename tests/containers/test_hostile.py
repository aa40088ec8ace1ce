"""Code that means harm: each ends in a clear result, and what it was after stays out of its reach.

The table of docs/how-to/run-untrusted-code.md is that of these tests.
"""

import errno
import json
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from machinequeue.errors import InvalidArguments
from tests.waiting import until
from tests.workshop.containers import patient, run_python, short
from tests.world import World

PROJECT = Path(__file__).resolve().parents[2]


def run(shop: World, code: str, task: Any = patient, **more: Any) -> Any:
    """The finished run of this Python code."""
    result = task.enqueue(["python", "main.py"], files={"main.py": code}, **more)
    shop.finish(result, seconds=90)
    return result


def said(shop: World, code: str, **more: Any) -> Any:
    """What this code printed, as JSON, of a run that ended well."""
    result = run(shop, f"import json, os\n{code}", **more)
    assert result.run_status == "SUCCESSFUL", (result.why(), result.output)
    assert result.return_value["exit_code"] == 0, result.return_value
    return json.loads(result.return_value["stdout"])


def test_a_fork_bomb_gets_no_more_processes(shop: World) -> None:
    count = said(
        shop,
        """
import time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        count += 1
except OSError:
    print(json.dumps(count))
""",
    )
    assert 10 < count < 64


def test_a_fork_bomb_that_does_not_stop_is_stopped(shop: World) -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    result = run(shop, bomb, short)
    assert result.run_status == "FAILED"
    assert result.history[-1]["status"] in ("timed out", "out of memory"), result.why()


def test_too_much_memory_is_refused(shop: World) -> None:
    result = run(shop, "data = bytearray(1 << 30)")
    assert result.return_value["exit_code"] == 1
    assert "MemoryError" in result.return_value["stderr"]


def test_processes_that_have_too_much_memory_together_are_killed(shop: World) -> None:
    signal = said(
        shop,
        """
import time
for _ in range(6):
    if os.fork() == 0:
        data = b"x" * (100 << 20)
        time.sleep(600)
        os._exit(0)
print(json.dumps(os.wait()[1]))
""",
    )
    assert signal == 9


def test_a_command_that_is_killed_for_memory_says_so(shop: World) -> None:
    code = "import mmap\nkept = mmap.mmap(-1, 1 << 30)\nwhile True:\n    kept.write(b'x' * (1 << 20))\n"
    result = run(shop, code)
    assert result.run_status == "FAILED"
    assert result.history[-1]["status"] == "out of memory", result.why()
    assert "ran out of memory at 256 MB" in result.why()


def test_a_full_disk_is_its_own(shop: World) -> None:
    number, written = said(
        shop,
        """
written = 0
try:
    for index in range(100):
        with open(f"/tmp/{index}", "wb") as file:
            for _ in range(16):
                written += file.write(b"x" * (1 << 20))
except OSError as error:
    print(json.dumps([error.errno, written]))
""",
    )
    assert number == errno.ENOSPC
    assert written <= 64 << 20


def test_a_file_cannot_be_larger_than_the_limit(shop: World) -> None:
    result = run(shop, "open('/tmp/big', 'wb').truncate(1 << 40)")
    assert "File too large" in result.return_value["stderr"]


def test_an_endless_loop_ends_with_the_timeout(shop: World) -> None:
    result = run(shop, "while True:\n    pass\n", short)
    assert result.run_status == "FAILED"
    assert result.history[-1]["status"] == "timed out"
    assert "longer than its timeout of 2 s" in result.why()


def test_who_sleeps_past_the_end_is_ended(shop: World) -> None:
    mark = f"{secrets.randbelow(10**6)}.{secrets.randbelow(10**6)}"
    result = short.enqueue(["sh", "-c", f"trap '' TERM INT HUP; sleep {mark}"])
    shop.finish(result, seconds=60)
    assert result.history[-1]["status"] == "timed out"
    until(lambda: not alive(mark), 60, lambda: alive(mark))


def test_endless_output_is_bounded_and_ended(shop: World) -> None:
    result = run(shop, "import sys\nwhile True:\n    sys.stdout.write('x' * 65536)\n", short)
    assert result.history[-1]["status"] == "timed out"
    assert len(result.output) < 300_000


def test_much_output_is_cut(shop: World) -> None:
    result = run(shop, "import sys\nsys.stdout.write('x' * 5_000_000)\nsys.stderr.write('y' * 5_000_000)\n")
    value = result.return_value
    assert value["exit_code"] == 0
    assert value["truncated"]
    assert 60_000 < len(value["stdout"]) < 70_000
    assert 60_000 < len(value["stderr"]) < 70_000


def test_output_that_is_no_text_is_stored(shop: World) -> None:
    result = run(shop, "import os\nos.write(1, bytes(range(256)))\n")
    assert result.return_value["exit_code"] == 0
    assert "\x00" not in result.return_value["stdout"]


def test_our_environment_is_not_there(shop: World) -> None:
    environment = said(shop, "print(json.dumps(dict(os.environ)))")
    assert not [name for name in environment if "TOKEN" in name or "DATABASE" in name or "SECRET" in name]
    assert "a secret of the app" not in environment.values()
    assert shop.url not in environment.values()
    assert {name for name in environment if not name.startswith("FLY_")} <= {
        "PATH",
        "HOME",
        "LANG",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
        "LC_CTYPE",
    }


def test_our_files_are_not_there(shop: World, tmp_path: Path) -> None:
    hidden = tmp_path / "secret"
    hidden.write_text("a secret file of the computer")
    wanted = [
        "/etc/shadow",
        "/proc/1/environ",
        "/proc/1/cmdline",
        "/proc/1/root/etc/shadow",
        "/proc/self/root/etc/shadow",
        f"/proc/{shop.emulator.pid}/environ",
        "/dev/mem",
        "/dev/vda",
        "/root/.bashrc",
        str(hidden),
        str(PROJECT / "pyproject.toml"),
        str(shop.emulator.state_dir / "emulator.jsonl"),
    ]
    code = f"""
found = []
for path in {wanted!r}:
    try:
        open(path, "rb").read(1)
        found.append(path)
    except OSError:
        pass
for path in ("/var", "/srv", "/run", "/mnt", "/sys"):
    if os.path.exists(path):
        found.append(path)
print(json.dumps(found))
"""
    assert said(shop, code) == []


def test_nothing_of_the_computer_can_be_written(shop: World) -> None:
    code = """
found = []
for path in ("/usr", "/usr/bin", "/etc/ssl", "/proc/sys/kernel", os.path.dirname(os.__file__)):
    try:
        open(path + "/mine", "w").write("x")
        found.append(path)
    except OSError:
        pass
print(json.dumps(found))
"""
    assert said(shop, code) == []


def test_our_ports_are_out_of_reach(shop: World) -> None:
    urls = [shop.url, shop.redis_url or "redis://127.0.0.1:6379", shop.emulator.url, "http://127.0.0.1:22"]
    ports = [urlsplit(url).port or 5432 for url in urls]
    code = f"""
import socket
refused = []
for port in {ports!r}:
    for host in ("127.0.0.1", "::1", "10.0.0.1", "169.254.169.254"):
        try:
            socket.create_connection((host, port), 2).close()
        except OSError as error:
            refused.append(error.errno)
print(json.dumps(refused))
"""
    refused = said(shop, code)
    assert len(refused) == 4 * len(ports)
    assert set(refused) <= {errno.ENETUNREACH, errno.EADDRNOTAVAIL}


def test_there_is_no_network_at_all(shop: World) -> None:
    assert said(shop, "import socket\nprint(json.dumps([name for _, name in socket.if_nameindex()]))") == ["lo"]


def test_there_is_no_way_out(shop: World) -> None:
    refused = said(
        shop,
        f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def number(result):
    return ctypes.get_errno() if result == -1 else 0
def attempt(call, *args):
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return 0
print(json.dumps({{
    "a user namespace": number(libc.unshare(0x10000000)),
    "a mount namespace": number(libc.unshare(0x00020000)),
    "a mount": number(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
    "no mount": number(libc.umount2(b"/usr", 2)),
    "another root": attempt(os.chroot, "/tmp"),
    "tracing": number(libc.ptrace(16, 1, 0, 0)),
    "killing init": attempt(os.kill, 1, 9),
    "killing the emulator": attempt(os.kill, {shop.emulator.pid}, 9),
    "being root": attempt(os.setuid, 0),
    "a device": attempt(os.mknod, "/tmp/disk", 0o60600, os.makedev(254, 0)),
    "memory that is nobody's": attempt(os.memfd_create, "x"),
}}))
""",
    )
    assert all(refused.values()), refused
    assert set(refused.values()) <= {errno.EPERM, errno.ESRCH, errno.EACCES, errno.EINVAL}


def test_only_its_own_processes_are_seen(shop: World) -> None:
    seen = said(shop, "print(json.dumps([name for name in os.listdir('/proc') if name.isdigit()]))")
    assert "1" not in seen
    assert len(seen) <= 3


def test_it_has_no_rights(shop: World) -> None:
    rights = said(
        shop,
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(json.dumps([int(status[name], 16) for name in ('CapEff', 'CapPrm', 'CapBnd')] + "
        "[int(status['NoNewPrivs']), int(status['Seccomp']), os.getuid()]))",
    )
    assert rights == [0, 0, 0, 1, 2, 65534]


def test_processes_left_behind_end_with_the_machine(shop: World) -> None:
    mark = f"{secrets.randbelow(10**6)}.{secrets.randbelow(10**6)}"
    result = patient.enqueue(["sh", "-c", f"setsid sleep {mark} & (setsid sleep {mark} &) ; echo done"])
    shop.finish(result, seconds=60)
    assert result.return_value["stdout"] == "done\n"
    shop.all_gone()
    until(lambda: not alive(mark), 60, lambda: alive(mark))


def test_who_kills_everybody_ends_its_own_machine(shop: World) -> None:
    result = run(shop, "import os\nos.kill(-1, 9)\n", run_python)
    assert result.run_status in ("FAILED", "SUCCESSFUL")
    ends = {each["status"] for each in result.history}
    assert ends <= {"lost", "succeeded"}
    if result.run_status == "FAILED":
        assert "given up after 3 attempts" in result.why()
    else:
        assert result.return_value["exit_code"] == 137


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..", "", "a/", "x\0y", "x\ny"])
def test_names_of_files_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InvalidArguments, match="files"):
        run_python.enqueue(["true"], files={name: "x"})


def test_a_link_leads_nowhere_else(shop: World) -> None:
    code = (
        "os.symlink('/etc/shadow', 'link')\ntry:\n    open('link')\nexcept OSError as error:\n    print(error.errno)\n"
    )
    assert said(shop, code) == errno.ENOENT


def test_a_name_is_never_a_command(shop: World) -> None:
    odd = "-n $(touch pwned) 'x' \"y\" `id`.py"
    result = patient.enqueue(["ls"], files={odd: "x"}, env={"A": "'; touch pwned; '"})
    shop.finish(result, seconds=60)
    assert result.return_value["stdout"] == f"{odd}\n"


def alive(mark: str) -> list[psutil.Process]:
    """The processes of this computer that have the mark in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and mark in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found
