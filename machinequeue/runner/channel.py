"""JSON messages, a line each, over a socket pair between two processes of a machine."""

import array
import json
import socket
from collections import deque
from typing import Any

PIECE = 1 << 16


class Closed(Exception):
    """The other end is gone."""


class Channel:
    """One end. File descriptors may travel with a message; they arrive in the order sent."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._pieces: list[bytes] = []
        self._messages: deque[dict[str, Any]] = deque()
        self.descriptors: deque[int] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Raises Closed."""
        data = json.dumps(message).encode() + b"\n"
        try:
            sent = socket.send_fds(self._socket, [data], list(descriptors)) if descriptors else 0
            if sent < len(data):
                self._socket.sendall(data[sent:])
        except OSError as error:
            raise Closed from error

    def receive(self) -> dict[str, Any]:
        """The next message; waits for it. Raises Closed."""
        while not self._messages:
            self._read()
        return self._messages.popleft()

    def available(self) -> list[dict[str, Any]]:
        """The messages that one read brings; to be called when the socket is readable. Raises Closed."""
        self._read()
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def _read(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(PIECE, socket.CMSG_LEN(16 * array.array("i").itemsize))
        except OSError as error:
            raise Closed from error
        if not data:
            raise Closed
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(value[: len(value) - len(value) % numbers.itemsize])
                self.descriptors.extend(numbers)
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._pieces, lines[0]])
            self._pieces.clear()
        self._pieces.append(rest)
        self._messages.extend(json.loads(line) for line in lines)


def pair() -> tuple[Channel, Channel]:
    """Two connected ends."""
    one, other = socket.socketpair()
    return Channel(one), Channel(other)
