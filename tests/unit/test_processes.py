"""Processes below this one are found and ended, wherever they hide; and a message is never cut in two."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machinequeue.errors import TaskTimeout
from machinequeue.runner import processes
from machinequeue.runner.channel import Channel, pair
from machinequeue.runner.task_process import TIMEOUT_SIGNAL, Voice
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who is below")

ESCAPE = """
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        signal.pause()
    os._exit(0)
os.wait()
"""


@pytest.fixture(params=["children", "stat"])
def _told_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which kernels tell who is whose child."""
    monkeypatch.setattr(processes, "_TELLS_CHILDREN", request.param == "children")


@pytest.mark.usefixtures("_told_by")
def test_descendants_are_found() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 600 & wait"]) as shell:
        try:
            [sleeper] = until(lambda: processes.children(shell.pid), 60)
            assert shell.pid in processes.children(os.getpid())
            assert processes.descendants(shell.pid) == [sleeper]
            assert {shell.pid, sleeper} <= set(processes.descendants(os.getpid()))
            assert processes.children(sleeper) == []
        finally:
            os.kill(processes.children(shell.pid)[0], signal.SIGKILL)


ADOPTS = """
import os, subprocess, sys
from machinequeue.runner import processes

processes.adopt_orphans()
kept = subprocess.Popen(["sleep", "600"])
with subprocess.Popen([sys.executable, "-c", {escape!r}], stdout=subprocess.PIPE) as parent:
    orphan = int(parent.stdout.readline())
assert processes.children(os.getpid()) == [kept.pid, orphan]
print("it came to us")
processes.end_strays({{kept.pid}})
assert not os.path.exists(f"/proc/{{orphan}}")
print("it is gone")
assert kept.poll() is None
print("our own lives")
processes.end_strays()
assert processes.children(os.getpid()) == []
print("nobody is left")
"""


def test_who_adopts_orphans_ends_what_forked_twice_and_keeps_its_own(tmp_path: Path) -> None:
    # In a process of its own: this one must not adopt what the rest of the tests start.
    script = tmp_path / "script.py"
    script.write_text(ADOPTS.format(escape=ESCAPE))
    root = Path(processes.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, script], env={"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "it came to us\nit is gone\nour own lives\nnobody is left\n"


def test_a_family_s_memory_is_counted_once_and_of_one_alone_nothing_is_said() -> None:
    hold = "import signal; taken = b'x' * (50 << 20); print(flush=True); signal.pause()"
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {hold!r}]); p.wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        [child] = processes.children(process.pid)
        assert processes.family_mb(child) == 0
        assert 50 <= processes.family_mb(process.pid) < 100
        os.kill(child, signal.SIGKILL)


# Messages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = pair()
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def voice(ends: tuple[Channel, Channel]) -> Iterator[Voice]:
    """The voice of a task in this process, interrupted by the signal of a timeout."""
    speaking = Voice(ends[0])
    before = signal.signal(TIMEOUT_SIGNAL, speaking.interrupt)
    yield speaking
    signal.signal(TIMEOUT_SIGNAL, before)


def test_an_interruption_in_the_middle_of_a_message_waits_for_its_end(
    ends: tuple[Channel, Channel], voice: Voice
) -> None:
    message = {"checkpoint": "x" * 3_000_000}
    received: list[dict[str, Any]] = []

    def interrupt_and_read() -> None:
        until(lambda: voice._speaking, 60)
        signal.pthread_kill(threading.main_thread().ident, TIMEOUT_SIGNAL)  # type: ignore[arg-type]
        received.extend([ends[1].receive(), ends[1].receive()])

    reader = threading.Thread(target=interrupt_and_read)
    reader.start()
    with pytest.raises(TaskTimeout):
        voice.send(message)
    voice.send({"outcome": 1})
    reader.join()
    assert received == [message, {"outcome": 1}]


def test_an_interruption_between_messages_is_raised_at_once(voice: Voice) -> None:
    with pytest.raises(TaskTimeout):
        signal.raise_signal(TIMEOUT_SIGNAL)
    voice.send({"progress": 1})


def test_threads_that_speak_at_once_do_not_mix_their_words(ends: tuple[Channel, Channel], voice: Voice) -> None:
    messages = [{"progress": str(number) * 300_000} for number in range(8)]
    speakers = [threading.Thread(target=voice.send, args=(message,)) for message in messages[1:]]
    reader: list[dict[str, Any]] = []
    listening = threading.Thread(target=lambda: reader.extend(ends[1].receive() for _ in messages))
    for thread in (listening, *speakers):
        thread.start()
    voice.send(messages[0])
    for thread in (listening, *speakers):
        thread.join(60)
    assert sorted(message["progress"][0] for message in reader) == list("01234567")
    assert all(message in messages for message in reader)
