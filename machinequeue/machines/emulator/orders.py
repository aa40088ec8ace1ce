"""What the init of a machine is told at a boot."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from machinequeue.machines.emulator import configs, files
from machinequeue.machines.emulator.ground import Ground
from machinequeue.machines.emulator.images import SANDBOX_BIN, Image


@dataclass(frozen=True)
class Booted:
    """One boot's ingredients. `secrets` are what the environment may have, `app_secrets` what files may name;
    `platform` are the variables that the platform sets."""

    image: Image
    config: Mapping[str, Any] = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)
    app_secrets: Mapping[str, str] = field(repr=False)
    platform: Mapping[str, str]


def order_of(ground: Ground, boot: Booted, say: Callable[[str], None]) -> dict[str, Any]:
    """The order for `Init`; `say` hears what had to be left out."""
    order = {
        "processes": [_process(ground, boot, process) for process in configs.processes_of(boot.config)],
        "cwd": str(boot.image.directory),
        "memory_mb": configs.guest_of(boot.config).memory_mb,
        "files": files.to_place(boot.config, boot.app_secrets, say),
        "room": str(ground.files_dir),
    }
    if boot.image.walled:
        commands = {f"{SANDBOX_BIN}/{name}": str(boot.image.python) for name in ("python", "python3")}
        order |= {"shown": [sys.base_prefix], "commands": commands, "cpus": configs.guest_of(boot.config).cpus}
    return order


def _process(ground: Ground, boot: Booted, process: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "argv": boot.image.command(configs.command_of(boot.config, process)),
        "env": {
            "PATH": boot.image.search_path,
            "HOME": "/tmp" if boot.image.walled else str(ground.home_dir),  # noqa: S108 - its own
            "LANG": "C.UTF-8",
            **configs.environment_of(boot.config, process, boot.secrets),
            **boot.platform,
        },
    }
