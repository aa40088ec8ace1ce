"""The edge on one computer: a stand-in for Fly's proxy in front of emulated machines with services.

Run it with ``python -m machinequeue.machines.proxy``, or from Python with `Edge`.
"""

from machinequeue.machines.proxy.process import Edge, EdgeError

__all__ = ["Edge", "EdgeError"]
