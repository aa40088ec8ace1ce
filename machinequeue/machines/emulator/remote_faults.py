"""Let a running emulator misbehave, from Python: what `Emulator.faults` is.

    with emulator.faults.add("capacity", region="iad", times=2) as fault:
        ...
    assert fault.fired == 2

    hold = emulator.faults.hold("create")  # the machine is created, the answer is held back
    ...
    hold.wait()  # a client waits for its answer at this instant
    hold.release()

The kinds and what they take are listed by `emulator.faults.kinds()`.
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from machinequeue.machines.session import authorization

Actions = str | Sequence[str] | None
EXCHANGE_SECONDS = 30.0
HOLDING = ("hold", "freeze")


class FaultError(ValueError):
    """The emulator does not take the fault, or it did not do what was waited for; the message says why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Fault:
    """One fault of an emulator. As a context manager it is removed at the end of the block."""

    def __init__(self, faults: Faults, described: dict[str, Any]) -> None:
        self.id = str(described["id"])
        self.kind = str(described["kind"])
        self._faults = faults
        self._described = described
        self._removed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.kind}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def described(self) -> dict[str, Any]:
        """As the control API shows it: now, or as it was when it was removed."""
        if not self._removed:
            self._described = self._faults.call("GET", f"/{self.id}")
        return self._described

    @property
    def fired(self) -> int:
        """How often it acted."""
        return int(self.described["fired"])

    @property
    def active(self) -> bool:
        """Whether it may act again."""
        return bool(self.described["active"])

    @property
    def last(self) -> dict[str, str]:
        """What it acted on last: action, app, machine (an id), name, region; empty before it acted."""
        return dict(self.described["last"] or {})

    def wait(self, fired: int = 1, timeout: float = 10) -> Self:
        """Block until it acted `fired` times. Raises FaultError after `timeout` seconds."""
        return self._wait("fired", fired, timeout)

    def remove(self) -> None:
        """End it. One that was removed before, with all others too, is fine."""
        if self._removed:
            return
        self._removed = True
        try:
            self._described = self._faults.call("DELETE", f"/{self.id}")
        except FaultError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    def _wait(self, what: str, count: int, timeout: float) -> Self:
        seconds = max(1, math.ceil(timeout))
        query = f"until={what}&count={count}&timeout={seconds}"
        self._described = self._faults.call("GET", f"/{self.id}/wait?{query}", seconds=seconds + EXCHANGE_SECONDS)
        return self


class Hold(Fault):
    """A fault that lets calls stand still. Removing it releases them."""

    @property
    def holding(self) -> int:
        """How many calls stand still now."""
        return int(self.described["holding"])

    def wait(self, fired: int = 1, timeout: float = 10) -> Self:
        """Block until `fired` calls stand still. Raises FaultError after `timeout` seconds."""
        return self._wait("holding", fired, timeout)

    def release(self, drop: bool = False) -> None:
        """Let the calls go on; with `drop` their connections end without an answer instead."""
        self._faults.call("POST", f"/{self.id}/release", {"drop": drop})


class Faults:
    """The faults of one running emulator, over its control API. Safe to share between threads."""

    def __init__(self, url: str, token: str) -> None:
        self._address = urlsplit(url).netloc
        self._token = token

    def __repr__(self) -> str:
        return f"<Faults at {self._address}>"

    def add(self, kind: str, action: Actions = None, **terms: Any) -> Fault:
        """Add a fault; `terms` are its scope, limits and parameters. Raises FaultError with what there is instead."""
        sent = {name: value for name, value in terms.items() if value is not None or name in ("times", "seconds")}
        if action is not None:
            sent["action"] = action if isinstance(action, str) else list(action)
        described = self.call("POST", "", {"kind": kind, **sent})
        return (Hold if kind in HOLDING else Fault)(self, described)

    def hold(self, action: Actions, *, after: bool = True, **terms: Any) -> Hold:
        """Let a call stand still until it is released: after its effect, or before it."""
        fault = self.add("hold", action, when="after" if after else "before", **terms)
        assert isinstance(fault, Hold)
        return fault

    def freeze(self, **terms: Any) -> Hold:
        """Let the API not answer at all until it is released."""
        fault = self.add("freeze", **terms)
        assert isinstance(fault, Hold)
        return fault

    def lose_answer(self, action: Actions, **terms: Any) -> Fault:
        """Have the call carried out, and its connection end without an answer: once, unless `times` says else."""
        return self.add("lose_answer", action, **terms)

    def vanish(self, machine: str, **terms: Any) -> Fault:
        """Lose the host of a machine (an id or a name) until the fault is removed."""
        return self.add("vanish", machine=machine, **terms)

    def return_host(self, machine: str) -> Fault:
        """Bring the lost host of a machine back."""
        return self.add("return_host", machine=machine)

    def migrate(self, machine: str) -> Fault:
        """Move a machine to another host."""
        return self.add("migrate", machine=machine)

    def run_out_of_memory(self, machine: str) -> Fault:
        """Have the biggest process of a machine killed for want of memory."""
        return self.add("out_of_memory", machine=machine)

    def list(self) -> list[Fault]:
        """Every fault that was not removed."""
        rows = self.call("GET", "")["faults"]
        return [(Hold if row["kind"] in HOLDING else Fault)(self, row) for row in rows]

    def clear(self) -> None:
        """Remove all."""
        self.call("DELETE", "")

    def kinds(self) -> dict[str, Any]:
        """What there is: kinds with their parameters, and the actions that calls are known by."""
        return self.call("GET", "", root="/_emulator/kinds")

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        seconds: float = EXCHANGE_SECONDS,
        root: str = "/_emulator/faults",
    ) -> dict[str, Any]:
        """One exchange with the control API. Raises FaultError with the emulator's sentence."""
        connection = http.client.HTTPConnection(self._address, timeout=seconds)
        try:
            headers = {"Authorization": authorization(self._token), "Content-Type": "application/json"}
            connection.request(method, root + path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 400:
            raise FaultError(str(answer.get("error", answer)), response.status)
        return answer
