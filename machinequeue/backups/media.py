"""The files of the default storage, as one tar, a file at a time."""

import contextlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from typing import IO, Any

from django.core.files.storage import Storage, default_storage

from machinequeue.backups.dump import Dump


@contextlib.contextmanager
def open_media() -> Iterator[Dump]:
    """A tar of all files. `counts` says how many, once the stream has ended."""
    counts = {"files": 0}
    reading, writing = os.pipe()
    trouble: list[BaseException] = []
    packer = threading.Thread(target=_pack, args=(writing, counts, trouble), daemon=True)
    packer.start()
    try:
        with os.fdopen(reading, "rb") as pipe, io.BufferedReader(_Watched(pipe, trouble, packer)) as stream:
            yield Dump(stream, counts, "", compressed=False)
    finally:
        packer.join()


class _Watched(io.RawIOBase):
    """A pipe whose end is no end when its writer failed."""

    def __init__(self, pipe: IO[bytes], trouble: list[BaseException], packer: threading.Thread) -> None:
        self._pipe, self._trouble, self._packer = pipe, trouble, packer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        made = self._pipe.read(len(buffer))
        buffer[: len(made)] = made
        if not made:
            self._packer.join()
            if self._trouble:
                raise self._trouble[0]
        return len(made)


def _pack(writing: int, counts: dict[str, int], trouble: list[BaseException]) -> None:
    try:
        with (
            os.fdopen(writing, "wb") as pipe,
            tarfile.open(fileobj=pipe, mode="w|") as tar,
        ):
            for name in _names(default_storage, ""):
                with default_storage.open(name, "rb") as file:
                    entry = tarfile.TarInfo(name)
                    entry.size = file.size
                    entry.mtime = int(default_storage.get_modified_time(name).timestamp())
                    tar.addfile(entry, file)
                counts["files"] += 1
    except BaseException as error:
        # Also a broken pipe: a reader that left asks no more, and a storage's own is an error like others.
        trouble.append(error)


def _names(storage: Storage, folder: str) -> Iterator[str]:
    folders, files = storage.listdir(folder)
    for name in sorted(files):
        yield f"{folder}/{name}" if folder else name
    for name in sorted(folders):
        yield from _names(storage, f"{folder}/{name}" if folder else name)
