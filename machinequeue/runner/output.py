"""What a task prints: read without ever blocking it, bounded, passed on to the machine's own log."""

import codecs
import os
import select
import threading

from machinequeue.payload import scrub

PIECE = 1 << 16
TAIL_BYTES = 32_768
"""The newest output that is still stored when an attempt printed more than its limit."""
ATOMIC = 4_096
"""A pipe that polls as writable takes so many bytes without blocking (PIPE_BUF)."""


class Output:
    """Bytes of one attempt's output that were not stored yet. `add` in one thread, `take` in another."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._left = limit
        self._pending = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        """Keep what the limit allows, and of the rest the newest."""
        with self._lock:
            head = data[: self._left]
            self._pending += head
            self._left -= len(head)
            self._tail += data[len(head) :]
            excess = len(self._tail) - TAIL_BYTES
            if excess > 0:
                del self._tail[:excess]
                self._dropped += excess

    def take(self, *, last: bool = False) -> tuple[str, int]:
        """The text that came since, and the number of bytes dropped before it. `last`: with the newest part."""
        with self._lock:
            data, self._pending = bytes(self._pending), bytearray()
            text = self._decoder.decode(data)
            if not last:
                return scrub(text), 0
            tail, dropped = bytes(self._tail), self._dropped
        text += self._decoder.decode(b"", final=True)
        cut = f"\n… {dropped} bytes dropped …\n" if dropped else ""
        return scrub(text + cut + tail.decode("utf-8", "replace"), longest=1_000_000), dropped

    @property
    def waiting(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._pending)


def read_available(descriptor: int) -> bytes:
    """What the pipe holds now; empty at its end and when it holds nothing. The descriptor does not block."""
    try:
        return os.read(descriptor, PIECE)
    except BlockingIOError:
        return b""


def pass_on(data: bytes, descriptor: int = 1) -> None:
    """Write to the machine's own log what it takes without blocking; the rest is in the database anyway."""
    for start in range(0, len(data), ATOMIC):
        _, writable, _ = select.select([], [descriptor], [], 0)
        if not writable:
            return
        try:
            os.write(descriptor, data[start : start + ATOMIC])
        except OSError:
            return
