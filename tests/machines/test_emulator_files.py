"""Files of a config, in real machines: found where they were asked for, seen by nobody else, gone afterwards."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator import Emulator
from machinequeue.machines.emulator.files import can_place
from tests.machines.conftest import IMAGE, Create, python, raw_client, until

MACHINES = "/v1/apps/shop/machines"
needs_mounts = pytest.mark.skipif(not can_place(), reason="this computer permits no mount namespaces")


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def file(path: object, text: str, **fields: Any) -> dict[str, Any]:
    return {"guest_path": str(path), "raw_value": encoded(text), **fields}


def reads(*paths: object) -> str:
    """A script that shows the content and mode of files."""
    return (
        "import os, pathlib\n"
        f"for path in map(pathlib.Path, {[*map(str, paths)]!r}):\n"
        "    print('>', path.read_text(), oct(path.stat().st_mode & 0o7777), flush=True)"
    )


def shown(emulator: Emulator, client: MachinesClient, machine: str) -> list[str]:
    client.wait(machine, "stopped")
    return [line[2:] for line in emulator.output(machine).splitlines() if line.startswith("> ")]


@needs_mounts
def test_a_file_is_where_it_was_asked_for(
    emulator: Emulator, client: MachinesClient, create: Create, tmp_path: Path
) -> None:
    old = tmp_path / "old.conf"
    old.write_text("of the computer")
    new, deep, root = tmp_path / "new.conf", tmp_path / "a" / "b" / "deep.conf", Path("/mq-files-test/x.conf")
    etc = Path("/etc/mq-files-test/settings.json")
    paths = (old, new, deep, root, etc)
    files = [file(path, f"file {number}", mode=0o600 + number) for number, path in enumerate(paths)]
    made = create(python(reads(*paths, tmp_path / "beside"), files=files))
    (tmp_path / "beside").write_text("too late")
    expected = [f"file {number} 0o60{number}" for number in range(len(paths))]
    assert shown(emulator, client, made.id)[: len(paths)] == expected
    assert old.read_text() == "of the computer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "old.conf"]
    assert not root.parent.exists()
    assert not etc.parent.exists()


@needs_mounts
def test_what_a_machine_writes_elsewhere_stays(
    emulator: Emulator, client: MachinesClient, create: Create, image_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    code = (
        "import pathlib\n"
        f"pathlib.Path({str(tmp_path / 'data' / 'kept')!r}).write_text('kept')\n"
        "pathlib.Path('in-the-image').write_text('kept')\n" + reads(tmp_path / "x")
    )
    made = create(python(code, files=[file(tmp_path / "x", "x")]))
    assert shown(emulator, client, made.id) == ["x 0o644"]
    assert (tmp_path / "data" / "kept").read_text() == "kept"
    assert (image_dir / "in-the-image").read_text() == "kept"


@needs_mounts
def test_a_file_may_be_a_secret_and_is_read_at_each_start(
    emulator: Emulator, http: httpx.Client, client: MachinesClient, create: Create, tmp_path: Path
) -> None:
    secrets = "/v1/apps/shop/secrets/CERTIFICATE"
    http.post(secrets, json={"value": encoded("first")})
    path = tmp_path / "certificate"
    made = create(
        python(reads(path), files=[{"guest_path": str(path), "secret_name": "CERTIFICATE"}]), skip_secrets=True
    )
    assert shown(emulator, client, made.id) == ["first 0o644"]
    http.post(secrets, json={"value": encoded("second")})
    client.start(made.id)
    until(lambda: shown(emulator, client, made.id) == ["first 0o644", "second 0o644"])
    http.delete(secrets)
    client.start(made.id)
    until(lambda: f"File {path} is left out" in emulator.output(made.id))
    journal = emulator.log_path.read_text()
    assert encoded("first") not in journal


@needs_mounts
def test_two_machines_have_files_of_their_own(
    emulator: Emulator, client: MachinesClient, create: Create, tmp_path: Path
) -> None:
    path = tmp_path / "same"
    made = [create(python(reads(path), files=[file(path, text)])).id for text in ("one", "two")]
    assert [shown(emulator, client, each) for each in made] == [["one 0o644"], ["two 0o644"]]


@needs_mounts
def test_a_command_and_a_child_see_the_files(
    http: httpx.Client, emulator: Emulator, client: MachinesClient, create: Create, tmp_path: Path
) -> None:
    forever = "import signal; print('up', flush=True); signal.pause()"
    made = create(python(forever, files=[file(tmp_path / "x", "content")]))
    client.wait(made.id, "started")
    until(lambda: "up\n" in emulator.output(made.id))
    answer = http.post(f"{MACHINES}/{made.id}/exec", json={"command": ["cat", str(tmp_path / "x")]})
    assert answer.json()["stdout"] == "content"


@needs_mounts
def test_a_new_file_in_the_directory_of_an_image_is_refused_and_an_old_one_is_covered(
    emulator: Emulator, http: httpx.Client, client: MachinesClient, create: Create, image_dir: Path
) -> None:
    answer = http.post(MACHINES, json={"config": python("pass", files=[file(image_dir / "new.py", "")])})
    assert answer.status_code == 501
    assert "in the directory of an image, is not emulated" in answer.json()["error"]
    old = image_dir / "old.py"
    old.write_text("of the computer")
    made = create(python(reads("old.py"), files=[file(old, "of the machine")]))
    assert shown(emulator, client, made.id) == ["of the machine 0o644"]
    assert old.read_text() == "of the computer"


BAD: list[tuple[Any, int, str]] = [
    ([7], 400, "config.files must be a list of objects"),
    ([{}], 400, "guest_path must be the absolute path of a file"),
    ([file("relative", "")], 400, "guest_path must be"),
    ([file("/directory/", "")], 400, "guest_path must be"),
    ([file("/a\0b", "")], 400, "guest_path must be"),
    ([file("/etc", "")], 400, "'/etc' is a directory"),
    ([file("/proc/version", "")], 400, "is the kernel's"),
    ([file("/tmp/../dev/null", "")], 400, "is the kernel's"),
    ([file("/etc/passwd/x", "")], 400, "'/etc/passwd' is no directory"),
    ([{"guest_path": "/etc/x"}], 400, "must have one of raw_value and secret_name"),
    ([file("/etc/x", "", secret_name="OTHER_KEY")], 400, "must have one of"),
    ([{"guest_path": "/etc/x", "secret_name": "UNKNOWN"}], 400, "'UNKNOWN' is not a secret of the app"),
    ([{"guest_path": "/etc/x", "secret_name": "OTHER_KEY"}], 400, "content must be base64"),
    ([{"guest_path": "/etc/x", "raw_value": "sesame!"}], 400, "content must be base64"),
    ([{"guest_path": "/etc/x", "raw_value": 7}], 400, "content must be base64"),
    ([file("/etc/x", "", mode=-1)], 400, "mode must be"),
    ([file("/etc/x", "", mode="0644")], 400, "mode must be"),
    ([file("/etc/x", "x" * 1_100_000)], 400, "more than 1048576 bytes"),
    ([{"guest_path": "/etc/x", "image_config": "shop"}], 501, "image_config is not emulated"),
]


@pytest.mark.parametrize(("files", "status", "words"), BAD, ids=[f"{number}" for number in range(len(BAD))])
def test_a_bad_file_is_refused(http: httpx.Client, files: Any, status: int, words: str) -> None:
    answer = http.post(MACHINES, json={"config": python("pass", files=files)})
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert "sesame" not in answer.text


@needs_mounts
def test_a_content_is_never_on_the_disk(image_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "key"
    with Emulator(app="shop", images={IMAGE: image_dir}, state_dir=tmp_path / "state") as emulator:
        code = reads(path) + "\nimport signal; print('up', flush=True); signal.pause()"
        with raw_client(emulator) as http:
            made = http.post(MACHINES, json={"config": python(code, files=[file(path, "sesame" + "-open")])}).json()
        until(lambda: "up\n" in emulator.output(made["id"]))
        assert "sesame-open" in emulator.output(made["id"])
        kept = [each for each in emulator.state_dir.rglob("*") if each.is_file() and each.suffix != ".log"]
        emulator.kill()
        assert kept
        assert not any("sesame-open" in each.read_text() for each in kept)
        assert not any(encoded("sesame-open") in each.read_text() for each in kept)
        assert [*Path(emulator.state_dir, "files").iterdir()] == []


class Powerless(Emulator):
    """Runs where no process may have mounts of its own."""

    def _command(self) -> list[str]:
        return ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *super()._command()]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes root's powers away with setpriv")
def test_where_mounts_are_not_permitted_files_are_refused(image_dir: Path) -> None:
    with Powerless(app="shop", images={IMAGE: image_dir}) as emulator, raw_client(emulator) as http:
        answer = http.post(MACHINES, json={"config": python("pass", files=[file("/etc/x", "")])})
        assert answer.status_code == 501
        assert "this computer does not permit" in answer.json()["error"]
        assert http.post(MACHINES, json={"config": python("pass")}).status_code == 200


UNPRIVILEGED = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]


@needs_mounts
def test_files_need_no_privilege() -> None:
    if subprocess.run([*UNPRIVILEGED, "true"], capture_output=True, check=False).returncode:
        pytest.skip("setpriv takes no capability away here, from whom has none or is not there")
    words = [*UNPRIVILEGED, sys.executable, "-m", "machinequeue.machines.emulator.mounts"]
    assert subprocess.run(words, check=False, timeout=60).returncode == 0
