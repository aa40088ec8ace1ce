"""Put files where a config wants them, for one machine alone: in a mount namespace that its init enters. Linux only.

Nothing is written to the computer's own file system. A path that exists is covered; for one that does not, the nearest
directory above it is covered by a copy whose entries are the old ones, and the file is made there. All of it is kept
in memory and gone with the machine. Run as a program, this says with its exit status whether the computer permits it.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
LARGEST_DIRECTORY = 10_000
ROOT = Path("/")


class Mounts:
    """`room` is an empty directory that every machine may cover with memory of its own."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.ours: set[Path] = set()
        self.count = 0
        self.libc = ctypes.CDLL(None, use_errno=True)

    def enter(self) -> None:
        """Leave the computer's mount namespace. Raises OSError where that is not permitted."""
        user, group = os.geteuid(), os.getegid()
        try:
            os.unshare(os.CLONE_NEWNS)
        except PermissionError:
            os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
        self._mount("none", "/", "", MS_REC | MS_PRIVATE)
        self._mount("tmpfs", self.room, "tmpfs", 0, "mode=755")

    def place(self, path: str, content: bytes, mode: int) -> None:
        """Make `path` a file with this content. Raises OSError."""
        where = Path(path).resolve()
        if where.exists():
            new = self._unused()
            _create(new, content, mode)
            self._bind(new, where)
            return
        missing = [parent for parent in where.parents if not parent.exists()]
        above = where.parents[len(missing)]
        if above not in self.ours:
            self._cover(above)
        for directory in reversed(missing):
            directory.mkdir(0o755)
            self.ours.add(directory)
        _create(where, content, mode)

    def _cover(self, directory: Path) -> None:
        copy = self._unused()
        copy.mkdir(0o755)
        entries = list(directory.iterdir())
        if len(entries) > LARGEST_DIRECTORY:
            raise OSError(errno.E2BIG, f"{directory} has more than {LARGEST_DIRECTORY} entries")
        for entry in entries:
            self._repeat(entry, copy / entry.name)
        copy.chmod(stat.S_IMODE(directory.stat().st_mode))
        if directory == ROOT:
            os.chroot(copy)
        else:
            self._bind(copy, directory)
        self.ours.add(directory)

    def _repeat(self, entry: Path, target: Path) -> None:
        try:
            if entry.is_symlink():
                target.symlink_to(entry.readlink())
                return
            if entry.is_dir():
                target.mkdir()
            else:
                _create(target, b"", 0o600)
            self._bind(entry, target)
        except FileNotFoundError:
            pass  # it was removed while we looked

    def _unused(self) -> Path:
        self.count += 1
        return Path(self.room, str(self.count))

    def _bind(self, source: Path, target: Path) -> None:
        self._mount(str(source), str(target), "", MS_BIND | MS_REC)

    def _mount(self, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        words = [os.fsencode(word) for word in (source, target, kind, options)]
        if self.libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), target)


def place_all(room: str, files: Sequence[Mapping[str, Any]]) -> None:
    """Enter a namespace and place `files`: path, mode and content in base64. Raises OSError."""
    mounts = Mounts(room)
    mounts.enter()
    for file in files:
        mounts.place(file["path"], base64.b64decode(file["content"]), file["mode"])


def _create(path: Path, content: bytes, mode: int) -> None:
    path.touch(0o600, exist_ok=False)
    path.write_bytes(content)
    path.chmod(mode)


def _probe() -> int:
    """0 when files can be placed here, over a file and beside one."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        room, old = Path(place, "room"), Path(place, "old")
        room.mkdir()
        _create(old, b"old", 0o600)
        if os.fork() == 0:
            done = 1
            try:
                mounts = Mounts(str(room))
                mounts.enter()
                mounts.place(str(old), b"new", 0o600)
                mounts.place(f"{place}/beside/new", b"new", 0o600)
                done = 0
            finally:
                os._exit(done)
        return os.waitstatus_to_exitcode(os.wait()[1])


if __name__ == "__main__":
    raise SystemExit(_probe())
