"""Ports for servers that cannot be told to choose one, and ports where nobody listens."""

import atexit
import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_chance = random.SystemRandom()
_silent: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody has. It is below those that the kernel gives to connections and to whoever asks for any: all
    the clients and servers of the other tests get none of these between our question and the start of the server.
    """
    first = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    while True:
        port = _chance.randrange(max(first - 16_384, 1024), first)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def closed_port() -> int:
    """A port where nobody listens, and nobody will: it is taken, by a socket that refuses connections."""
    if not _silent:
        _silent.append(socket.socket())
        atexit.register(_silent[0].close)
        _silent[0].bind(("127.0.0.1", 0))
    return int(_silent[0].getsockname()[1])
