"""The files of a config: what may be asked, and what the init is told to place."""

from __future__ import annotations

import base64
import binascii
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machinequeue.machines.emulator.answers import bad_request, not_emulated
from machinequeue.machines.emulator.configs import objects

USUAL_MODE = 0o644
LARGEST_MODE = 0o7777
LARGEST_BYTES = 1024 * 1024
OF_THE_KERNEL = ("/proc", "/sys", "/dev")
PROBE_SECONDS = 20

Secrets = Mapping[str, str]


def check(config: Mapping[str, Any], secrets: Secrets, image_directory: Path | None) -> None:
    """Raise a Refusal unless a machine can have these files. In a sandbox there is no directory of the image."""
    files = objects(config, "files")
    for number, file in enumerate(files):
        _check(file, f"config.files[{number}]", secrets, image_directory)
    if sum(len(_content(file, secrets)) for file in files) > LARGEST_BYTES:
        raise bad_request(f"config.files hold more than {LARGEST_BYTES} bytes in all")
    if files and image_directory is not None and not can_place():
        raise not_emulated("config.files, which needs mount namespaces that this computer does not permit,")


def _check(file: Mapping[str, Any], name: str, secrets: Secrets, image_directory: Path | None) -> None:
    _check_path(file.get("guest_path"), f"{name}.guest_path", image_directory)
    if file.get("image_config"):
        raise not_emulated(f"{name}.image_config")
    mode = file.get("mode") or 0
    if not isinstance(mode, int) or isinstance(mode, bool) or not 0 <= mode <= LARGEST_MODE:
        raise bad_request(f"{name}.mode must be a whole number up to {LARGEST_MODE} (octal 7777)")
    raw, secret = file.get("raw_value"), file.get("secret_name")
    if (raw is None) == (not secret):
        raise bad_request(f"{name} must have one of raw_value and secret_name")
    if secret and (not isinstance(secret, str) or secret not in secrets):
        raise bad_request(f"{name}.secret_name {secret!r} is not a secret of the app")
    try:
        _content(file, secrets)
    except ValueError:
        raise bad_request(f"{name}: the content must be base64") from None


def _check_path(path: object, name: str, image_directory: Path | None) -> None:
    if not isinstance(path, str) or not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise bad_request(f"{name} must be the absolute path of a file")
    if image_directory is None:
        return  # what it means is known only inside
    where = Path(os.path.realpath(path))
    if any(where.is_relative_to(place) for place in OF_THE_KERNEL):
        raise bad_request(f"{name} {path!r} is the kernel's")
    if where.is_dir():
        raise bad_request(f"{name} {path!r} is a directory")
    above = next(parent for parent in where.parents if parent.exists())
    if not above.is_dir():
        raise bad_request(f"{name} {path!r}: {str(above)!r} is no directory")
    if not where.exists() and above.is_relative_to(image_directory):
        # What the machine writes beside the new file (a database's journal, say) would be kept from everybody else.
        raise not_emulated(f"{name} {path!r}, a new file in the directory of an image,")


def _content(file: Mapping[str, Any], secrets: Secrets) -> bytes:
    """Raises ValueError when it is not base64."""
    text = file.get("raw_value")
    text = secrets[file["secret_name"]] if text is None else text
    if not isinstance(text, str):
        raise ValueError("content is text")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("content is base64") from error


def to_place(config: Mapping[str, Any], secrets: Secrets, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """What `mounts` wants, with the secrets of now; `say` hears of a file that has become impossible."""
    found: list[dict[str, Any]] = []
    for file in config.get("files") or ():
        try:
            content = base64.b64encode(_content(file, secrets)).decode()
        except (KeyError, ValueError):
            say(f"File {file['guest_path']} is left out: its secret is gone or not base64")
            continue
        found.append({"path": file["guest_path"], "mode": file.get("mode") or USUAL_MODE, "content": content})
    return found


@functools.cache
def can_place() -> bool:
    """Whether this computer lets a process have mounts of its own. Asked once, in a process that tries."""
    if sys.platform != "linux":
        return False
    words = [sys.executable, "-m", "machinequeue.machines.emulator.mounts"]
    try:
        done = subprocess.run(words, capture_output=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
