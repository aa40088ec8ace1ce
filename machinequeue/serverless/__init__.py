"""Send chosen views to a machine with `fly-replay`, keep that machine current, shut idle servers down.

A web process reads rows and writes wishes; a dispatcher creates the machines. Names are imported on first use, so that
the entrypoint of a machine (`python -m machinequeue.serverless`) starts without Django.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machinequeue.serverless.idle import idle_shutdown
    from machinequeue.serverless.middleware import ServerlessMiddleware
    from machinequeue.serverless.views import serverless_view

_HOMES = {"ServerlessMiddleware": "middleware", "idle_shutdown": "idle", "serverless_view": "views"}

__all__ = ["ServerlessMiddleware", "idle_shutdown", "serverless_view"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"machinequeue.serverless.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'machinequeue.serverless' has no attribute {name!r}")
