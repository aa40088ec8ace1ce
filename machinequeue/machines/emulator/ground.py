"""What every emulated machine stands on."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from machinequeue.machines.emulator.images import Images
from machinequeue.machines.emulator.journal import Journal


@dataclass(frozen=True)
class Ground:
    """`host` is the socket to the process that forks machines; `region` the one of a machine that asks for none."""

    host: socket.socket
    journal: Journal
    images: Images
    state_dir: Path
    region: str = "iad"

    @property
    def logs_dir(self) -> Path:
        """Where the output of machines is kept, a file each."""
        return self.state_dir / "logs"

    @property
    def home_dir(self) -> Path:
        """HOME of every machine."""
        return self.state_dir / "home"
