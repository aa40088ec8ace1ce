"""The emulator under requests that Schemathesis draws from the specification, valid ones and others, over HTTP.

Longer, and from another seed: FUZZ_EXAMPLES=200 FUZZ_SEED=7 pytest tests/machines/test_fuzz.py
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import content_type_conformance

from machinequeue.machines.emulator import Emulator
from tests.machines import conformance
from tests.machines.conformance import JSON, Exchange
from tests.machines.conftest import until

IMAGE = "registry.fly.io/shop:v1"
APP = "fuzzed"
PLACEMENTS = "/v1/platform/placements"
NONCE = "fly-machine-lease-nonce"
SEED = os.environ.get("FUZZ_SEED")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))
COMMANDS = {"exec": ["sleep", "60"], "entrypoint": ["sleep", "60"], "cmd": ["sleep", "60"], "command": ["true"]}
GUEST = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}
LEFT_OUT = ("size", "containers", "mounts", "schedule", "standbys")
CHECKS = [not_a_server_error, content_type_conformance]
STATES = ("started", "stopped", "created", "destroyed")  # "created" lasts but a moment, so it means just made


@pytest.fixture(scope="module")
def specification() -> Any:
    """Read where the test runs: what Schemathesis draws from it beforehand takes long, and each worker collects."""
    return schemathesis.openapi.from_dict(
        conformance.document(),
        config=SchemathesisConfig.from_dict(
            {
                "seed": int(SEED or 1),
                "generation": {"max-examples": EXAMPLES, "deterministic": SEED is None, "database": "none"},
            }
        ),
    )


schema = schemathesis.pytest.from_fixture("specification")


class Ground:
    """An app with a machine in each state, made anew whenever a drawn request took one away."""

    def __init__(self, emulator: Emulator) -> None:
        self.base_url = emulator.url
        self._stderr = emulator.state_dir / "emulator.stderr"
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {emulator.token}"
        self._machines: dict[str, str] = {}
        self._leased = "", ""
        self._app_is_there = False
        self._states = itertools.cycle(STATES)
        self.turns = itertools.count(1)

    def machine(self, state: str = "") -> str:
        """The id of a machine in that state, in each in turn when none is given."""
        state = state if state in STATES else next(self._states)
        known = self._machines.get(state, "") if self.app() else ""
        if not known or (state != "destroyed" and self._ask("GET", f"/{known}").get("state") != state):
            self._machines[state] = self._made(state)
        return self._machines[state]

    def app(self) -> str:
        """The app, with its secret; nothing is asked while both are known to be there."""
        if not self._app_is_there:
            self._machines.clear()
            self.session.post(f"{self.base_url}/v1/apps", json={"name": APP})
            self.session.post(f"{self.base_url}/v1/apps/{APP}/secrets", json={"values": {"KEY": "value"}})
            self._app_is_there = True
        return APP

    def said(self) -> str:
        """The end of what the emulator wrote to its standard error."""
        return self._stderr.read_text(errors="replace")[-2000:]

    def lease(self, machine_id: str) -> str:
        """The nonce of a new lease."""
        self._leased = machine_id, str(self._ask("POST", f"/{machine_id}/lease", {"ttl": 60}).get("nonce", ""))
        return self._leased[1]

    def drop_lease(self) -> None:
        """Release it, if it is still there."""
        machine_id, nonce = self._leased
        if nonce:
            self._ask("DELETE", f"/{machine_id}/lease", headers={NONCE: nonce})
        self._leased = "", ""

    def lost(self) -> None:
        """Something was deleted: look before the app is used again."""
        self._app_is_there = False

    def tidy(self, path: str, answer: Any) -> None:
        """Take back what a drawn request took: a lease, which would hold every later stop, and a machine."""
        if not isinstance(answer, dict) or "/machines" not in path:
            return
        nonce = {NONCE: answer["nonce"]} if "nonce" in answer else {}
        if "instance_id" in answer:
            self._ask("DELETE", f"/{answer['id']}?force=true", headers=nonce)
        elif nonce:
            self._ask("DELETE", path.partition("/machines")[2], headers=nonce)

    def _made(self, state: str) -> str:
        config = {"image": IMAGE, "init": {"exec": ["sleep", "60"]}, "metadata": {"color": "red"}}
        body = {"skip_launch": state == "stopped", "config": config}
        made = str(self._ask("POST", "", body)["id"])
        if state == "destroyed":
            self._ask("DELETE", f"/{made}?force=true")
        elif state != "created":
            until(lambda: self._ask("GET", f"/{made}").get("state") == state)
        return made

    def _ask(self, method: str, path: str, body: Any = None, headers: Any = None) -> Any:
        url = f"{self.base_url}/v1/apps/{APP}/machines{path}"
        return self.session.request(method, url, json=body, headers=headers, timeout=20).json()


@pytest.fixture(scope="module")
def ground(image_dir: Any) -> Iterator[Ground]:
    with Emulator(app=APP, images={IMAGE: image_dir}) as emulator:
        yield Ground(emulator)


@schema.parametrize()
def test_every_answer_keeps_to_the_specification(case: schemathesis.Case, ground: Ground) -> None:
    turn = next(ground.turns)
    if SEED is None and turn % 16 and _is_one_of_thousands(case):
        return
    _aim(case, ground, turn)
    case.body = _harmless(case.body, keep=turn % 7 == 0)
    response = case.call(base_url=ground.base_url, session=ground.session, timeout=20)
    sent = response.request
    media = response.headers.get("content-type", [""])[0].partition(";")[0]
    if media == JSON and sent.method == "POST":
        ground.tidy(str(sent.path_url), response.json())
    ground.drop_lease()
    if sent.method == "DELETE":
        ground.lost()
    problem = Exchange(str(sent.method), str(sent.path_url), response.status_code, media, response.content).problem()
    assert not problem, f"{problem}\n{case.as_curl_command()}\n{ground.said()}"
    if response.status_code != 501:
        case.validate_response(response, checks=CHECKS)


def _is_one_of_thousands(case: schemathesis.Case) -> bool:
    """Whether it is a corner of a config, of which there are some two thousand for each of two calls."""
    schemas = ("machines", "{machine_id}")
    return (
        case.meta.phase.name.value == "coverage" and case.method == "POST" and case.path.rpartition("/")[2] in schemas
    )


def _aim(case: schemathesis.Case, ground: Ground, turn: int) -> None:
    """Let most requests hit an app, a machine, a secret that is there and ask for what can be done soon."""
    if turn % 9 == 0 and not case.path.endswith("/wait"):
        return
    path, query = case.path_parameters, case.query
    state = ""
    if case.path.endswith("/wait"):
        state = query.get("state", "started") if query.get("state", "started") in STATES else "destroyed"
        query["timeout"] = "1" if query.get("timeout", 60) in range(2, 61) else query["timeout"]
    if "limit" in query and turn % 4:
        query["limit"] = "2"
        query.pop("cursor", None)
    if "machine_id" in path:
        path["machine_id"] = ground.machine(state)
    if case.path.endswith("/lease") and case.method != "POST" and turn % 4:
        nonce = ground.lease(path["machine_id"])
        case.headers = {**(case.headers or {}), **({NONCE: nonce} if turn % 3 else {})}
    there = {"app_name": ground.app(), "secret_name": "KEY", "key": "color", "org_slug": "personal"}
    path.update({name: value for name, value in there.items() if name in path})
    if isinstance(case.body, dict) and turn % 4:
        case.body.update(
            {"/v1/apps": {"name": f"fuzzed-{turn}"}, PLACEMENTS: {"org_slug": "personal"}}.get(case.path, {})
        )


def _harmless(body: Any, keep: bool) -> Any:
    """The body with commands that do nothing; mostly with a size and an image that are there, without what is not."""
    if isinstance(body, list):
        return [_harmless(each, keep) for each in body]
    if not isinstance(body, dict):
        return body
    found = {key: _harmless(value, keep) for key, value in body.items()}
    for key, value in found.items():
        if key in COMMANDS and isinstance(value, str):
            found[key] = "true"
        elif key in COMMANDS and isinstance(value, list) and all(isinstance(word, str) for word in value):
            found[key] = COMMANDS[key]
    if isinstance(found.get("config"), dict) and not keep:
        usual = {"image": IMAGE, "init": {"exec": COMMANDS["exec"]}, "guest": GUEST}
        found["config"] = {**usual, **found["config"], "image": IMAGE, "guest": GUEST}
        for each in LEFT_OUT:
            found["config"].pop(each, None)
        found.pop("region", None)
    return found
