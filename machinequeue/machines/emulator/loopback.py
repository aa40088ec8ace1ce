"""What a server on loopback needs, the emulator and the edge alike: types of its command line, and its listener.

Imports next to nothing: the emulator reads its command line before it forks its host.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import socket
import sys
from pathlib import Path

from machinequeue.machines.emulator.names import is_app_name

TOKEN_VARIABLE = "FLY_API_TOKEN"  # noqa: S105  # the name of a variable, not a token


def app_name(text: str) -> str:
    """The name of an app, as a type of argparse."""
    if not is_app_name(text):
        raise argparse.ArgumentTypeError(f"an app's name may have lower-case letters, digits and dashes, not {text!r}")
    return text


def port_number(text: str) -> int:
    """A port, 0 for a free one, as a type of argparse."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def directory(text: str) -> Path:
    """A directory, made when it is missing, as a type of argparse."""
    path = Path(text).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be made: {error.strerror}") from None
    return path


def listen(port: int, backlog: int) -> socket.socket:
    """A socket that listens on 127.0.0.1. Raises OSError."""
    # The protocol is named because asyncio turns Nagle's algorithm off (40 ms an answer) only where it is.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(backlog)
    return listener


BLOCKS = range(1, 255)
"""Second numbers of addresses 127.n.0.0/16; 127.0 is everybody's."""


class Addresses:
    """Loopback addresses for the machines of one emulator: no other emulator of this computer gives them out.

    Only Linux answers on all of 127.0.0.0/8; elsewhere all machines share 127.0.0.1.
    """

    def __init__(self) -> None:
        self._count = 0
        self._block, self._claim = _claimed()

    def next(self) -> str:
        """One that no machine of this emulator has yet, for the first 65534."""
        if not self._block:
            return "127.0.0.1"
        self._count = self._count % 65_534 + 1
        return str(ipaddress.IPv4Address(f"127.{self._block}.0.0") + self._count)

    def close(self) -> None:
        """Let others have them."""
        if self._claim is not None:
            self._claim.close()


def _claimed() -> tuple[int, socket.socket | None]:
    """A block and what claims it: a name that the kernel frees when this process ends, known where loopback is."""
    if sys.platform != "linux":
        return 0, None
    start = os.getpid() % len(BLOCKS)
    for block in (*BLOCKS[start:], *BLOCKS[:start]):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0machinequeue-emulator-127.{block}")
        except OSError:
            claim.close()
            continue
        return block, claim
    raise OSError(f"{len(BLOCKS)} emulators run on this computer already: stop one of them")
