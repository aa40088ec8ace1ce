"""The Machines API on one computer: a server on loopback whose machines are real process trees.

Run it with ``python -m machinequeue.machines.emulator``, or from Python with `Emulator`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machinequeue.machines.emulator.process import Emulator

__all__ = ["Emulator"]


def __getattr__(name: str) -> Any:
    # Late, because the server's first act is to fork a host process that must have imported next to nothing.
    if name == "Emulator":
        from machinequeue.machines.emulator.process import Emulator

        return Emulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
