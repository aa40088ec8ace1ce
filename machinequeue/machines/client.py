"""A Machines API client for one app: one method per call, values in, values out, errors by meaning.

It never decides what to do about a refusal, with two exceptions: a create is idempotent (see `MachinesClient.create`),
and a read is repeated a few times (see `Session.send`).
"""

from __future__ import annotations

import base64
import binascii
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from machinequeue.machines.errors import Ambiguous, MachinesError, NameTaken, NotFound
from machinequeue.machines.pacing import Pace
from machinequeue.machines.schema import (
    CreateRequest,
    Event,
    ExecResult,
    Guest,
    Lease,
    LogPage,
    Machine,
    OrgMachines,
    Placement,
    Region,
    TokenInfo,
    parse_events,
)
from machinequeue.machines.session import PUBLIC_URL, READ_TRIES, Call, Params, Session, json_of, request_id

IDENTITY_KEY = "mq_machine"
PAGE_SIZE = 200
LONGEST_WAIT = 60
CREATE_TRIES = 3
LARGEST_ANSWER = 8 * 1024 * 1024
"""Bytes of the answer of an exec that are read: what prints is not always ours."""

# Inside the class `list` is the method.
MachineList = list[Machine]
Names = list[str]


class MachinesClient:
    """Calls for `app`. Safe to share between threads; use as a context manager or `close()` it.

    `timeout` is seconds per exchange. Every method may raise any `MachinesError`; those named in a docstring are the
    ones to expect. A read that failed for a moment is sent up to `read_tries` times. `pause` is how the client sleeps
    between two tries, and until its turn when `pace` gives turns.
    """

    def __init__(  # noqa: PLR0913  # all but the app by keyword
        self,
        app: str,
        *,
        token: str,
        base_url: str = PUBLIC_URL,
        transport: httpx.BaseTransport | None = None,
        timeout: float = 30,
        read_tries: int = READ_TRIES,
        pace: Pace | None = None,
        pause: Callable[[float], None] = time.sleep,
        user_agent: str = "machinequeue",
    ) -> None:
        self._app = app
        self._session = Session(
            app=app,
            token=token,
            base_url=base_url,
            transport=transport,
            timeout=timeout,
            read_tries=read_tries,
            pace=pace,
            pause=pause,
            user_agent=user_agent,
        )
        self._send = self._session.send
        self._root = f"/v1/apps/{quote(app, safe='')}"

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
        Raises NameTaken for a foreign machine, Ambiguous when it may exist and nobody could be asked, and a refusal as
        it is when it is certain that nothing was created.
        """
        started = time.monotonic()
        lost: Ambiguous | None = None
        if not _identity(request):
            return self._create_or_adopt(request)  # whose answer is lost, nothing would tell from another
        for tries in range(1, CREATE_TRIES + 1):
            try:
                return self._create_or_adopt(request)
            except NameTaken:
                raise
            except Ambiguous as error:
                lost = error
            except MachinesError:
                # A refusal says nothing about the request before it, whose answer was lost.
                if lost is None:
                    raise
            self._session.pause(random.uniform(0.2, 0.5) * tries)
            found = self._find(request)
            if found is not None:
                return found
            if time.monotonic() - started > self._session.timeout:
                break
        assert lost is not None
        raise lost

    def _create_or_adopt(self, request: CreateRequest) -> Machine:
        try:
            response = self._send(_create_call(f"{self._root}/machines", request))
        except NameTaken as taken:
            return self._adopt(request, taken)
        return _machine(response)

    def _adopt(self, request: CreateRequest, taken: NameTaken) -> Machine:
        if not _identity(request):
            raise taken
        if not taken.machine_id:
            found = self._find(request)
            if found is None:
                raise taken
            return found
        try:
            machine = self.get(taken.machine_id)
        except MachinesError as error:
            raise Ambiguous(
                f"name {request.name} is taken by machine {taken.machine_id}, which could not be read: {error.message}",
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
        try:
            found = self._pages(_filters({IDENTITY_KEY: identity}, include_deleted=True), once=True)
        except MachinesError:
            return None
        ours = [each for each in found if each.metadata.get(IDENTITY_KEY) == identity and each.name == request.name]
        return min(ours, key=lambda each: each.state == "destroyed", default=None)

    # -- read -----------------------------------------------------------------------------------------------------

    def get(self, machine_id: str) -> Machine:
        """The machine now; readable for about two days after it was destroyed. Raises NotFound."""
        return _machine(self._send(Call("GET", self._path(machine_id), usable=_is_machine)))

    def list(
        self,
        metadata: Mapping[str, str] | None = None,
        states: Iterable[str] | None = None,
        region: str | None = None,
        include_deleted: bool = False,
    ) -> MachineList:
        """All machines that match every filter, page by page. An empty list is no proof of absence."""
        return self._pages(_filters(metadata, states, region, include_deleted))

    def _pages(self, filters: Params, once: bool = False) -> MachineList:
        machines: dict[str, Machine] = {}
        seen: set[str] = set()
        cursor = ""
        while True:
            params = _page(filters, cursor)
            call = Call("GET", f"{self._root}/machines", params=params, action="list", once=once, usable=_is_machines)
            response = self._send(call)
            for row in json_of(response):
                machine = Machine.parse(row, request_id(response))
                machines[machine.id] = machine
            cursor = response.headers.get("fly-next-cursor", "")
            if not cursor or cursor in seen:
                return [*machines.values()]
            seen.add(cursor)

    def events(self, machine_id: str, limit: int = 20) -> tuple[Event, ...]:
        """Up to `limit` (at most 50) events, newest first."""
        path, params = f"{self._path(machine_id)}/events", [("limit", limit)]
        return parse_events(self._ask(Call("GET", path, params=[*params], usable=_is_list)))

    def wait(self, machine_id: str, state: str, timeout: float = 60, instance_id: str | None = None) -> str:
        """Block until the machine is in `state` (or one of "a,b"; "settled" is any resting state); say which.

        `timeout` is seconds, held between 1 and 60 as Fly demands. Raises WaitTimeout, and NotFound for a machine
        that is gone. With many machines, ask `list` now and then instead: Fly allows one wait per machine and second.
        """
        seconds = int(max(1, min(LONGEST_WAIT, timeout)))
        params: Params = [("state", state), ("timeout", seconds)]
        if instance_id:
            params.append(("version", instance_id))
        path, patience = f"{self._path(machine_id)}/wait", seconds + self._session.timeout
        # Never repeated: the second wait would begin when the first should have ended.
        call = Call("GET", path, params=params, timeout=patience, once=True, usable=_says_state)
        return str(self._ask(call)["state"])

    def logs(self, instance: str = "", next_token: str = "", region: str = "") -> Iterator[LogPage]:
        """The log of a machine, or of the whole app, page by page until there is nothing newer.

        Without `next_token` it begins with the newest 100 lines; with that of a page, after that page. Lines may come
        up to 20 s late, and go after about seven days. Raises LogsRefused: not every deploy token may read logs.
        """
        url = f"{self._session.logs_url}/api{self._root}/logs"
        seen = {next_token}
        while True:
            pairs = [("instance", instance), ("region", region), ("next_token", next_token)]
            params: Params = [pair for pair in pairs if pair[1]]
            page = LogPage.parse(self._ask(Call("GET", url, params=params, usable=_is_object)))
            if not page.lines:
                return
            yield page
            next_token = page.next_token
            if not next_token or next_token in seen:
                return
            seen.add(next_token)

    # -- change ---------------------------------------------------------------------------------------------------

    def start(self, machine_id: str, *, lease: Lease | None = None) -> str:
        """Start a stopped machine; returns its state before.

        Raises Conflict in another state, LeaseHeld, and NoCapacity when its host is full.
        """
        answer = self._ask(Call("POST", f"{self._path(machine_id)}/start", lease=lease, usable=_is_object))
        return str(answer.get("previous_state") or "")

    def stop(
        self, machine_id: str, signal: str | None = None, timeout: str | None = None, *, lease: Lease | None = None
    ) -> None:
        """Ask the machine to stop: `signal`, then, after `timeout` (a Go duration, at most 300s), SIGKILL.

        What is not given is as the machine's own `stop_config` says, else SIGINT and 5 s.
        While somebody else holds a lease Fly does not refuse it but blocks: Ambiguous, after the client's timeout.
        """
        # Always an object: a body of [] is refused.
        body = {name: value for name, value in (("signal", signal), ("timeout", timeout)) if value is not None}
        self._send(Call("POST", f"{self._path(machine_id)}/stop", body=body, lease=lease))

    def restart(
        self, machine_id: str, signal: str = "SIGTERM", timeout: str = "30s", *, lease: Lease | None = None
    ) -> None:
        """Stop the machine as `stop` does, and start it again."""
        params: Params = [("signal", signal), ("timeout", timeout)]
        self._send(Call("POST", f"{self._path(machine_id)}/restart", params=params, lease=lease))

    def suspend(self, machine_id: str, *, lease: Lease | None = None) -> None:
        """Write the machine's memory to disk and rest; only up to 2 GB. `start` resumes it, or boots it afresh."""
        self._send(Call("POST", f"{self._path(machine_id)}/suspend", lease=lease))

    def signal(self, machine_id: str, signal: str) -> None:
        """Send a signal by name to the machine's main process."""
        self._send(Call("POST", f"{self._path(machine_id)}/signal", body={"signal": signal}))

    def update(
        self,
        machine_id: str,
        config: Mapping[str, Any],
        *,
        current_version: str = "",
        skip_launch: bool = False,
        lease: Lease | None = None,
    ) -> Machine:
        """Replace the whole config, as a new version; a running machine is restarted, unless `skip_launch`.

        `current_version` is the instance id that the machine must have still. Raises Conflict when it has another,
        LeaseHeld, Rejected. Never pass on a config read while `host_status` was not "ok": it is incomplete.
        """
        body: dict[str, Any] = {"config": dict(config)}
        if current_version:
            body["current_version"] = current_version
        if skip_launch:
            body["skip_launch"] = True
        hide = _secrets_of_config(config)
        call = Call("POST", self._path(machine_id), body=body, hide=hide, lease=lease, usable=_is_machine)
        return _machine(self._send(call))

    def destroy(self, machine_id: str, force: bool = False, *, lease: Lease | None = None) -> None:
        """Destroy the machine, running ones only with `force`. A machine that is gone already is fine.

        While somebody else holds a lease it blocks as `stop` does.
        """
        params: Params | None = [("force", "true")] if force else None
        try:
            self._send(Call("DELETE", self._path(machine_id), params=params, lease=lease))
        except NotFound:
            return

    def cordon(self, machine_id: str) -> None:
        """Let Fly's proxy send the machine no more requests; without services it has no effect."""
        self._send(Call("POST", f"{self._path(machine_id)}/cordon"))

    def uncordon(self, machine_id: str) -> None:
        """Let Fly's proxy send the machine requests again."""
        self._send(Call("POST", f"{self._path(machine_id)}/uncordon"))

    def exec(
        self, machine_id: str, command: Iterable[str], *, timeout: float = 30, stdin: str | None = None
    ) -> ExecResult:
        """Run a command in a started machine for at most `timeout` whole seconds. A command that fails is no error.

        Whoever reads the platform's records reads the command; pass what is secret by `stdin`.
        Raises TooLarge when it printed more than LARGEST_ANSWER bytes, whatever it did.
        """
        seconds = max(1, round(timeout))
        body: dict[str, Any] = {"command": [*command], "timeout": seconds}
        if stdin is not None:
            body["stdin"] = stdin
        hide = frozenset([stdin] if stdin else ())
        path, patience = f"{self._path(machine_id)}/exec", seconds + self._session.timeout
        return ExecResult.parse(
            self._ask(
                Call("POST", path, body=body, hide=hide, timeout=patience, largest=LARGEST_ANSWER, usable=_is_object)
            )
        )

    # -- leases ---------------------------------------------------------------------------------------------------

    def acquire_lease(self, machine_id: str, ttl: int, description: str = "") -> Lease:
        """Hold the machine for `ttl` seconds: nobody without this lease may start or update it. Raises LeaseHeld."""
        body = {"ttl": ttl, "description": description}
        return Lease.parse(self._ask(Call("POST", f"{self._path(machine_id)}/lease", body=body, usable=_has_nonce)))

    def refresh_lease(self, machine_id: str, lease: Lease, ttl: int) -> Lease:
        """Hold it for `ttl` seconds from now. Raises LeaseHeld when it ended and somebody else holds the machine."""
        path, body = f"{self._path(machine_id)}/lease", {"ttl": ttl}
        return Lease.parse(self._ask(Call("POST", path, body=body, lease=lease, usable=_has_nonce)))

    def release_lease(self, machine_id: str, lease: Lease) -> None:
        """Give the machine free. A lease that ended already is fine."""
        try:
            self._send(Call("DELETE", f"{self._path(machine_id)}/lease", lease=lease))
        except NotFound:
            return

    def lease(self, machine_id: str) -> Lease | None:
        """The lease on the machine, whoever holds it; None without one."""
        try:
            return Lease.parse(self._ask(Call("GET", f"{self._path(machine_id)}/lease", usable=_is_object)))
        except NotFound:
            return None

    # -- metadata -------------------------------------------------------------------------------------------------

    def metadata(self, machine_id: str) -> dict[str, str]:
        """All metadata of the machine."""
        answer = self._ask(Call("GET", self._entry(machine_id), usable=_is_object))
        return {key: str(value) for key, value in answer.items()}

    def set_metadata(self, machine_id: str, key: str, value: str) -> None:
        """Set one entry; the machine is not restarted."""
        self._send(Call("POST", self._entry(machine_id, key), body={"value": value}))

    def merge_metadata(self, machine_id: str, changes: Mapping[str, str | None], instance_id: str = "") -> None:
        """Set several entries at once, and remove those whose value is None; the machine is not restarted.

        Raises Conflict when `instance_id` is given and the machine has another version by now.
        """
        body: dict[str, Any] = {"metadata": dict(changes)}
        if instance_id:
            body["machine_version"] = instance_id
        self._send(Call("PATCH", self._entry(machine_id), body=body))

    def delete_metadata(self, machine_id: str, key: str) -> None:
        """Remove one entry; an entry that is gone already is fine."""
        try:
            self._send(Call("DELETE", self._entry(machine_id, key)))
        except NotFound:
            return

    # -- app and platform -----------------------------------------------------------------------------------------

    def app(self) -> dict[str, Any]:
        """The app as Fly describes it. Raises NotFound, Unauthorized: the cheapest test of name and token."""
        return dict(self._ask(Call("GET", self._root, usable=_is_object)))

    def clock(self) -> datetime | None:
        """What the API's clock says, to the second: the Date header of an answer about the app; None without one."""
        response = self._send(Call("GET", self._root, usable=_is_object))
        try:
            return parsedate_to_datetime(response.headers.get("date", ""))
        except ValueError:
            return None

    def create_app(self, name: str, org: str, network: str) -> None:
        """Make another app, whose machines reach only each other over the private network called `network`.

        Raises NameTaken, as names are global, and Unauthorized: a deploy token may not.
        """
        body = {"app_name": name, "name": name, "org_slug": org, "network": network}
        self._send(Call("POST", "/v1/apps", body=body))

    def secrets(self) -> Names:
        """The names of the app's secrets; their values cannot be read."""
        rows = self._ask(Call("GET", f"{self._root}/secrets", usable=_is_object)).get("secrets")
        return [row["name"] for row in rows or () if isinstance(row, dict) and isinstance(row.get("name"), str)]

    def current_token(self) -> tuple[TokenInfo, ...]:
        """What the token allows, by its parts. Raises Unauthorized for a dead one."""
        return TokenInfo.parse_all(self._ask(Call("GET", "/v1/tokens/current", usable=_is_object)))

    def regions(self) -> tuple[Region, ...]:
        """The regions of the platform."""
        return Region.parse_all(self._ask(Call("GET", "/v1/platform/regions", usable=_is_object)))

    def placements(self, org: str, guest: Guest, *, region: str = "", count: int = 0) -> tuple[Placement, ...]:
        """Where `count` machines of this size would fit now, of "iad,us" or any region; nothing is created.

        A count of 0 asks how many the organisation may have in each.
        """
        body: dict[str, Any] = {"org_slug": org, "count": count, "compute": guest.as_dict()}
        if region:
            body["region"] = region
        return Placement.parse_all(self._ask(Call("POST", "/v1/platform/placements", body=body, usable=_is_object)))

    def org_machines(self, org: str, *, include_deleted: bool = False) -> OrgMachines:
        """The machines of all apps of an organisation, some seconds old; a deploy token is refused.

        A region in `error_regions` did not answer: what is missing may be there.
        """
        path, filters = f"/v1/orgs/{quote(org, safe='')}/machines", _filters(None, include_deleted=include_deleted)
        machines: dict[str, Machine] = {}
        silent: set[str] = set()
        seen = {""}
        cursor = ""
        while True:
            response = self._send(Call("GET", path, params=_page(filters, cursor), usable=_is_page_of_machines))
            page = OrgMachines.parse(json_of(response), request_id(response))
            machines |= {machine.id: machine for machine in page.machines}
            silent |= {*page.error_regions}
            cursor = page.next_cursor
            if cursor in seen:
                return OrgMachines(tuple(machines.values()), tuple(sorted(silent)))
            seen.add(cursor)

    def _ask(self, call: Call) -> Any:
        return json_of(self._send(call))

    def _path(self, machine_id: str) -> str:
        return f"{self._root}/machines/{quote(machine_id, safe='')}"

    def _entry(self, machine_id: str, key: str = "") -> str:
        return f"{self._path(machine_id)}/metadata" + (f"/{quote(key, safe='')}" if key else "")


def _identity(request: CreateRequest) -> str:
    return request.metadata.get(IDENTITY_KEY, "")


def _create_call(path: str, request: CreateRequest) -> Call:
    return Call("POST", path, body=request.as_dict(), hide=_secrets_in(request), action="create", usable=_is_machine)


def _filters(
    metadata: Mapping[str, str] | None,
    states: Iterable[str] | None = None,
    region: str | None = None,
    include_deleted: bool = False,
) -> Params:
    params: Params = [(f"metadata.{key}", value) for key, value in (metadata or {}).items()]
    if states is not None:
        params.append(("state", ",".join(states)))
    if region is not None:
        params.append(("region", region))
    if include_deleted:
        params.append(("include_deleted", "true"))
    return params


def _page(filters: Params, cursor: str) -> Params:
    return [*filters, ("limit", PAGE_SIZE), *([("cursor", cursor)] if cursor else [])]


def _secrets_in(request: CreateRequest) -> frozenset[str]:
    """What is secret in a request, for hiding it from an error that quotes the request."""
    return _secrets_of_config(request.config, request.name, request.region or "")


def _secrets_of_config(config: Mapping[str, Any], *shown: str) -> frozenset[str]:
    """The values of env and the contents of files, but nothing that the config says openly elsewhere."""
    found: set[str] = set()
    for part in (config, *_parts(config, "processes"), *_parts(config, "containers")):
        env = part.get("env")
        found |= {str(value) for value in env.values()} if isinstance(env, Mapping) else set()
        for file in _parts(part, "files"):
            found |= _spellings(str(file.get("raw_value") or ""))
    metadata = config.get("metadata")
    open_values = metadata.values() if isinstance(metadata, Mapping) else ()
    return frozenset(found - {*shown, str(config.get("image"))} - {str(value) for value in open_values})


def _parts(config: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    parts = config.get(name)
    return [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list | tuple) else []


def _spellings(raw_value: str) -> set[str]:
    try:
        return {raw_value, base64.b64decode(raw_value, validate=True).decode()}
    except (binascii.Error, ValueError):
        return {raw_value}


def _machine(response: httpx.Response) -> Machine:
    return Machine.parse(json_of(response), request_id(response))


# What an answer has to be. Half of one, or a page of something between here and Fly, may come with 200 too.


def _is_object(body: Any) -> bool:
    return isinstance(body, dict)


def _is_list(body: Any) -> bool:
    return isinstance(body, list)


def _is_machine(body: Any) -> bool:
    return isinstance(body, dict) and bool(Machine.parse(body).id)


def _is_machines(body: Any) -> bool:
    return isinstance(body, list) and all(map(_is_machine, body))


def _is_page_of_machines(body: Any) -> bool:
    return isinstance(body, dict) and _is_machines(body.get("machines") or [])


def _says_state(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("state"), str) and bool(body["state"])


def _has_nonce(body: Any) -> bool:
    return isinstance(body, dict) and bool(Lease.parse(body).nonce)
