"""What every emulated machine stands on."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from machinequeue.machines.emulator.delays import Delays
from machinequeue.machines.emulator.images import Images
from machinequeue.machines.emulator.journal import Journal
from machinequeue.machines.emulator.loopback import Addresses


@dataclass(frozen=True)
class Ground:
    """`host` is the socket to the process that forks machines; `region` the one of a machine that asks for none."""

    host: socket.socket
    journal: Journal
    images: Images
    state_dir: Path
    addresses: Addresses
    region: str = "iad"
    delays: Delays = field(default_factory=Delays)

    @property
    def logs_dir(self) -> Path:
        """Where the output of machines is kept, a file each."""
        return self.state_dir / "logs"

    @property
    def files_dir(self) -> Path:
        """An empty directory, which machines with files cover with memory of their own."""
        return self.state_dir / "files"

    @property
    def home_dir(self) -> Path:
        """HOME of every machine."""
        return self.state_dir / "home"
