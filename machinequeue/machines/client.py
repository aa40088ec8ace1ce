"""A Machines API client for one app: one method per call, values in, values out, errors by meaning.

It never decides what to do about a refusal, with one exception: a create is idempotent (see `MachinesClient.create`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from machinequeue.machines.errors import Ambiguous, MachinesError, NameTaken, NotFound
from machinequeue.machines.schema import CreateRequest, Event, Machine, parse_events
from machinequeue.machines.session import PUBLIC_URL, Params, Session, request_id

IDENTITY_KEY = "mq_machine"
PAGE_SIZE = 200
LONGEST_WAIT = 60
CREATE_TRIES = 3

# Inside the class `list` is the method.
MachineList = list[Machine]
Names = list[str]


class MachinesClient:
    """Calls for `app`. Safe to share between threads; use as a context manager or `close()` it.

    `timeout` is seconds per exchange. Every method may raise any `MachinesError`; those named in a docstring are the
    ones to expect. `pause` is how it sleeps between two tries of a create.
    """

    def __init__(
        self,
        app: str,
        *,
        token: str,
        base_url: str = PUBLIC_URL,
        transport: httpx.BaseTransport | None = None,
        timeout: float = 30,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._app = app
        self._session = Session(token, base_url, transport, timeout)
        self._root = f"/v1/apps/{quote(app, safe='')}"
        self._pause = pause

    def __repr__(self) -> str:
        return f"<MachinesClient {self._app} at {self._session.base_url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()

    # -- create ---------------------------------------------------------------------------------------------------

    def create(self, request: CreateRequest) -> Machine:
        """Create (and boot, unless `skip_launch`) a machine, once, however often it is asked.

        The machine is known by its name and by the metadata `mq_machine`. A taken name means the machine that has it,
        when its `mq_machine` is the one asked for; an answer that got lost means looking the machine up before asking
        again under the same name. What comes back may therefore already be started, or even destroyed.
        Raises NameTaken for a foreign machine, Ambiguous when nobody could be asked, and any refusal as it is.
        """
        started = time.monotonic()
        for tries in range(CREATE_TRIES):
            try:
                return self._create_or_adopt(request)
            except Ambiguous as lost:
                self._pause(random.uniform(0.2, 0.5) * (tries + 1))
                found = self._find(request)
                if found is not None:
                    return found
                spent = time.monotonic() - started > self._session.timeout
                if tries + 1 == CREATE_TRIES or spent or not _identity(request):
                    raise lost
        raise AssertionError("unreachable")

    def _create_or_adopt(self, request: CreateRequest) -> Machine:
        try:
            response = self._session.call(
                "POST", f"{self._root}/machines", body=request.as_dict(), hide=_secrets_of(request)
            )
        except NameTaken as taken:
            return self._adopt(request, taken)
        return Machine.parse(_json(response), request_id(response))

    def _adopt(self, request: CreateRequest, taken: NameTaken) -> Machine:
        if not taken.machine_id or not _identity(request):
            raise taken
        try:
            machine = self.get(taken.machine_id)
        except NotFound as error:
            raise Ambiguous(
                f"name {request.name} is taken by a machine that is not to be found",
                method=taken.method,
                path=taken.path,
                status=taken.status,
                request_id=taken.request_id,
            ) from error
        if machine.metadata.get(IDENTITY_KEY) != _identity(request):
            raise taken
        return machine

    def _find(self, request: CreateRequest) -> Machine | None:
        """The machine of a create whose answer was lost; None when it is not visible, which proves nothing."""
        identity = _identity(request)
        if not identity:
            return None
        try:
            found = self.list(metadata={IDENTITY_KEY: identity}, include_deleted=True)
        except MachinesError:
            return None
        ours = [each for each in found if each.metadata.get(IDENTITY_KEY) == identity and each.name == request.name]
        return min(ours, key=lambda each: each.state == "destroyed", default=None)

    # -- read -----------------------------------------------------------------------------------------------------

    def get(self, machine_id: str) -> Machine:
        """The machine now; readable for about two days after it was destroyed. Raises NotFound."""
        response = self._session.call("GET", self._path(machine_id))
        return Machine.parse(_json(response), request_id(response))

    def list(
        self,
        metadata: Mapping[str, str] | None = None,
        states: Iterable[str] | None = None,
        region: str | None = None,
        include_deleted: bool = False,
    ) -> MachineList:
        """All machines that match every filter, page by page. An empty list is no proof of absence."""
        params: Params = [(f"metadata.{key}", value) for key, value in (metadata or {}).items()]
        if states is not None:
            params.append(("state", ",".join(states)))
        if region is not None:
            params.append(("region", region))
        if include_deleted:
            params.append(("include_deleted", "true"))
        return self._pages([*params, ("limit", str(PAGE_SIZE))])

    def _pages(self, params: Params) -> MachineList:
        machines: dict[str, Machine] = {}
        seen: set[str] = set()
        cursor = ""
        while True:
            page = [*params, ("cursor", cursor)] if cursor else params
            response = self._session.call("GET", f"{self._root}/machines", params=page)
            rows = _json(response)
            for row in rows if isinstance(rows, list) else ():
                machine = Machine.parse(row, request_id(response))
                machines[machine.id] = machine
            cursor = response.headers.get("fly-next-cursor", "")
            if not cursor or cursor in seen:
                return [*machines.values()]
            seen.add(cursor)

    def events(self, machine_id: str, limit: int = 20) -> tuple[Event, ...]:
        """Up to `limit` (at most 50) events, newest first."""
        response = self._session.call("GET", f"{self._path(machine_id)}/events", params=[("limit", str(limit))])
        return parse_events(_json(response))

    def wait(self, machine_id: str, state: str, timeout: float = 60, instance_id: str | None = None) -> str:
        """Block until the machine is in `state` (or one of "a,b"; "settled" is any resting state); say which.

        `timeout` is seconds, held between 1 and 60 as Fly demands. Raises WaitTimeout, and NotFound for a machine
        that is gone.
        """
        seconds = int(max(1, min(LONGEST_WAIT, timeout)))
        params: Params = [("state", state), ("timeout", str(seconds))]
        if instance_id:
            params.append(("version", instance_id))
        path = f"{self._path(machine_id)}/wait"
        answer = _object(self._session.call("GET", path, params=params, timeout=seconds + self._session.timeout))
        return str(answer.get("state") or state)

    # -- change ---------------------------------------------------------------------------------------------------

    def start(self, machine_id: str) -> str:
        """Start a stopped machine; returns its state before. Raises Conflict in another state, NoCapacity."""
        return str(_object(self._session.call("POST", f"{self._path(machine_id)}/start")).get("previous_state") or "")

    def stop(self, machine_id: str, signal: str = "SIGTERM", timeout: str = "30s") -> None:
        """Ask the machine to stop: `signal`, then, after `timeout` (a Go duration, at most 300s), SIGKILL."""
        self._session.call("POST", f"{self._path(machine_id)}/stop", body={"signal": signal, "timeout": timeout})

    def signal(self, machine_id: str, signal: str) -> None:
        """Send a signal by name to the machine's main process."""
        self._session.call("POST", f"{self._path(machine_id)}/signal", body={"signal": signal})

    def destroy(self, machine_id: str, force: bool = False) -> None:
        """Destroy the machine, running ones only with `force`. A machine that is gone already is fine."""
        try:
            self._session.call("DELETE", self._path(machine_id), params=[("force", "true")] if force else None)
        except NotFound:
            return

    # -- metadata -------------------------------------------------------------------------------------------------

    def metadata(self, machine_id: str) -> dict[str, str]:
        """All metadata of the machine."""
        return {key: str(value) for key, value in _object(self._call_metadata("GET", machine_id)).items()}

    def set_metadata(self, machine_id: str, key: str, value: str) -> None:
        """Set one entry; the machine is not restarted."""
        self._call_metadata("POST", machine_id, key, {"value": value})

    def delete_metadata(self, machine_id: str, key: str) -> None:
        """Remove one entry; an entry that is gone already is fine."""
        try:
            self._call_metadata("DELETE", machine_id, key)
        except NotFound:
            return

    def _call_metadata(
        self, method: str, machine_id: str, key: str = "", body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        path = f"{self._path(machine_id)}/metadata" + (f"/{quote(key, safe='')}" if key else "")
        return self._session.call(method, path, body=body)

    # -- app ------------------------------------------------------------------------------------------------------

    def app(self) -> dict[str, Any]:
        """The app as Fly describes it. Raises NotFound, Unauthorized: the cheapest test of name and token."""
        return _object(self._session.call("GET", self._root))

    def secrets(self) -> Names:
        """The names of the app's secrets; their values cannot be read."""
        rows = _object(self._session.call("GET", f"{self._root}/secrets")).get("secrets")
        return [row["name"] for row in rows or () if isinstance(row, dict) and isinstance(row.get("name"), str)]

    def _path(self, machine_id: str) -> str:
        return f"{self._root}/machines/{quote(machine_id, safe='')}"


def _identity(request: CreateRequest) -> str:
    return request.metadata.get(IDENTITY_KEY, "")


def _secrets_of(request: CreateRequest) -> frozenset[str]:
    """The env values of a request, for hiding them from an error that quotes the request."""
    env = request.config.get("env")
    shown = {request.name, request.region, request.config.get("image"), *request.metadata.values()}
    values = env.values() if isinstance(env, Mapping) else ()
    return frozenset(str(value) for value in values) - {str(each) for each in shown}


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _object(response: httpx.Response) -> dict[str, Any]:
    body = _json(response)
    return body if isinstance(body, dict) else {}
