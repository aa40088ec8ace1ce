"""A wire between two TCP ends that can be cut."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Wire:
    """Listens on `port` and forwards to a server, until it is told otherwise; all ends with the block."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._cut = False
        self._last_words = b""
        self.swallowed = threading.Event()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(60)

    def cut(self) -> None:
        """Break every connection, and each new one at once."""
        self._cut = True
        with self._lock:
            for pair in self._pairs:
                _break(*pair)

    def mend(self) -> None:
        """Let connections through again."""
        self._cut = False

    def swallow_answer_to(self, words: bytes) -> None:
        """Once: let a message with these words reach the server, but not its answer back; that connection breaks."""
        self.swallowed.clear()
        self._last_words = words

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                client.close()
                continue
            server = socket.create_connection(self._server)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, server)
            with self._lock:
                self._pairs.append(pair)
            silent = threading.Event()
            self._start(self._forward, client, server, silent, True)
            self._start(self._forward, server, client, silent, False)

    def _forward(self, source: socket.socket, sink: socket.socket, silent: threading.Event, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if asks and self._last_words and self._last_words in data:
                    self._last_words = b""
                    silent.set()
                elif not asks and silent.is_set():
                    self.swallowed.set()
                    break
                sink.sendall(data)
        _break(source, sink)
        with contextlib.suppress(OSError):
            source.close()


def _break(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
