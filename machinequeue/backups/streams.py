"""Bytes on their way to or from the storage, a piece at a time: never a whole backup in memory or on disk."""

import contextlib
import hashlib
import io
import os
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from machinequeue.errors import BackupError, BackupFailed

PIECE = 1 << 20
COMPLAINT_BYTES = 2_000


class Stream(io.RawIOBase):
    """A source that gives pieces of any length; b"" ends it."""

    def __init__(self) -> None:
        self._left = b""

    def piece(self) -> bytes:
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = self.piece()
        taken = min(len(buffer), len(self._left))
        buffer[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken


class Compressed(Stream):
    """A source, as gzip."""

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__()
        self._source = source
        self._gzip = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._ended = False

    def piece(self) -> bytes:
        made = b""
        while not made and not self._ended:
            raw = self._source.read(PIECE)
            self._ended = not raw
            made = self._gzip.flush() if self._ended else self._gzip.compress(raw)
        return made

    def close(self) -> None:
        self._source.close()
        super().close()


class Measured(Stream):
    """A source, and how long it was and what its SHA-256 is once it has ended."""

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__()
        self._source = source
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def piece(self) -> bytes:
        made = self._source.read(PIECE)
        self._hash.update(made)
        self.size += len(made)
        return made

    def close(self) -> None:
        self._source.close()
        super().close()


class Command(Stream):
    """What a program writes, with `source` as its input if there is one.

    Raises BackupFailed at the end, and so before an upload is completed, when the program did not succeed.
    """

    def __init__(
        self, words: Sequence[str], env: Mapping[str, str] | None = None, source: IO[bytes] | None = None
    ) -> None:
        super().__init__()
        self._source = source
        self._trouble: BaseException | None = None
        self._name = Path(words[0]).name
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the stream
        try:
            self._process = subprocess.Popen(
                list(words),
                env=None if env is None else dict(env),
                stdin=subprocess.DEVNULL if source is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
            )
        except OSError as error:
            self._complaints.close()
            io.RawIOBase.close(self)
            raise BackupFailed(
                f"{self._name} could not be started: {error.strerror}. Install it in the image."
            ) from error
        self._feeder = threading.Thread(target=self._feed, daemon=True) if source is not None else None
        if self._feeder is not None:
            self._feeder.start()

    def _feed(self) -> None:
        assert self._source is not None
        assert self._process.stdin is not None
        entrance = self._process.stdin
        try:
            while made := self._source.read(PIECE):
                try:
                    entrance.write(made)
                except BrokenPipeError:
                    break  # the program has ended, and its exit code says how
        except BaseException as error:
            self._trouble = error
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            entrance.close()

    def piece(self) -> bytes:
        assert self._process.stdout is not None
        made = self._process.stdout.read(PIECE)
        if not made:
            self._settle()
        return made

    def _settle(self) -> None:
        code = self._process.wait()
        if self._feeder is not None:
            self._feeder.join()
        if self._trouble is not None:
            raise self._trouble
        if code:
            raise BackupFailed(f"{self._name} ended with {_ending(code)}: {self.complaint() or 'it said nothing'}")

    def complaint(self) -> str:
        """The end of what it wrote to its standard error."""
        self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(self._complaints.tell() - COMPLAINT_BYTES, 0))
        return self._complaints.read().decode(errors="replace").strip()

    def close(self) -> None:
        if self.closed:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._feeder is not None:
            self._feeder.join()
        if self._source is not None:
            self._source.close()
        self._complaints.close()
        super().close()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def run(words: Sequence[str], env: Mapping[str, str] | None = None, source: IO[bytes] | None = None) -> str:
    """Run a program to its end; what it wrote. Raises BackupFailed with what it complained of."""
    with io.BufferedReader(Command(words, env, source)) as output:
        return output.read().decode(errors="replace")


def expand(source: IO[bytes], target: IO[bytes]) -> None:
    """Decompress gzip. Raises BackupError when it is damaged or ends early."""
    gunzip = zlib.decompressobj(31)
    try:
        while made := source.read(PIECE):
            target.write(gunzip.decompress(made))
        target.write(gunzip.flush())
    except zlib.error as error:
        raise BackupError(f"it cannot be decompressed: {error}") from error
    if not gunzip.eof:
        raise BackupError("it cannot be decompressed: it ends in the middle")
