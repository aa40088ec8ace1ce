"""The emulator, its list of deviations, its documentation and the specification say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from machinequeue.machines.emulator import Emulator, configs
from machinequeue.machines.emulator.misbehaviours import KINDS
from machinequeue.machines.emulator.options import parse
from machinequeue.machines.emulator.server import ROUTES
from tests.machines.conformance import Exchange, document, find_operation
from tests.machines.deviations import DEVIATIONS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "emulator.md"
MACHINE = "/v1/apps/shop/machines/148e21"


def section(title: str) -> str:
    """The text of one section of the documentation."""
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[str]:
    """The rows of the table in it, without its head."""
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def nameless(label: str) -> str:
    """A call without the names of its parameters."""
    return re.sub(r"\{\w+\}", "{}", label)


def specified() -> set[str]:
    """Every call of the specification, those left out of the excerpt too."""
    kept = {f"{method.upper()} {path}" for path, calls in document()["paths"].items() for method in calls}
    return kept | {*document()["x-left-out"]}


def missing() -> set[str]:
    """The calls that the documentation says to be missing."""
    found: set[str] = set()
    for row in rows(section("What answers 501")):
        path, methods = (cell.strip() for cell in row.strip("|").split("|"))
        found |= {f"{method} {path.strip('`')}" for method in methods.split(", ")}
    return found


def test_every_call_of_the_specification_is_there_or_documented_as_missing() -> None:
    routed = {nameless(f"{method} {path}") for method, path, *_ in ROUTES}
    assert {label for label in specified() if nameless(label) not in routed} == missing()


def test_what_is_missing_says_so(emulator: Emulator) -> None:
    headers = {"Authorization": f"Bearer {emulator.token}"}
    with httpx.Client(base_url=emulator.url, headers=headers, trust_env=False) as http:
        for label in sorted(missing()):
            method, _, path = re.sub(r"\{\w+\}", "x", label).partition(" ")
            answer = http.request(method, path)
            assert answer.status_code == 501, label
            assert "is not emulated" in answer.json()["error"]


def test_fields_that_are_missing_are_documented() -> None:
    text = section("What answers 501")
    assert [field for field in configs.NOT_EMULATED if f"`{field}`" not in text] == []


def test_every_fault_is_documented_with_its_parameters() -> None:
    text = section("Misbehave on demand")
    listed = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `") and row.count(" | ") == 4}
    assert [*listed] == [*KINDS]
    for name, kind in KINDS.items():
        assert (kind.__doc__ or "").partition("\n")[0] in listed[name]
        assert [each for each in kind.parameters if f"`{each}`" not in listed[name]] == []


def test_every_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    options = {*re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)} - {"--help"}
    assert options
    assert {each for each in options if f"`{each}" not in section("Start it")} == set()


def test_the_documented_deviations_are_those_that_the_tests_allow() -> None:
    assert rows(section("Deviations from the specification")) == [each.row() for each in DEVIATIONS]


def test_a_deviation_names_calls_that_there_are() -> None:
    labels = {label for each in DEVIATIONS for label in each.calls if " /" in label}
    assert labels <= specified()


DEVIATING: list[tuple[str, str, int, str, Any, str]] = [
    ("GET", MACHINE, 200, "application/json", {"id": 7}, "at /id"),
    ("GET", MACHINE, 200, "application/json", {"id": "1", "colour": "red"}, "'colour' was unexpected"),
    ("GET", MACHINE, 200, "application/json", {"host_status": "bored"}, "at /host_status"),
    (
        "GET",
        "/v1/apps/shop/machines?limit=2",
        200,
        "application/json",
        [{"image_ref": {"labels": 1}}],
        "at /0/image_ref",
    ),
    ("GET", MACHINE, 200, "text/html", "", "content type 'text/html'"),
    ("GET", MACHINE, 418, "application/json", {"error": "teapot"}, "an undocumented status"),
    ("GET", MACHINE, 404, "application/json", {"message": "not found"}, "'message' was unexpected"),
    ("GET", MACHINE, 404, "text/plain", "not found", "content type 'text/plain'"),
    ("GET", f"{MACHINE}/nothing", 404, "application/json", {}, "no call of the specification"),
    ("PUT", MACHINE, 200, "application/json", {}, "no call of the specification"),
]


@pytest.mark.parametrize(("method", "path", "status", "media", "body", "words"), DEVIATING)
def test_a_deviation_is_noticed(method: str, path: str, status: int, media: str, body: Any, words: str) -> None:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    assert words in Exchange(method, path, status, media, content).problem()


def test_what_is_as_specified_is_no_deviation() -> None:
    body = json.dumps({"id": "148e21", "state": "started", "config": {"image": "i"}}).encode()
    assert not Exchange("GET", MACHINE, 200, "application/json", body).problem()
    found = find_operation("GET", f"{MACHINE}/metadata/a%2Fb?x=1")
    assert found is not None
    assert found.label == "GET /v1/apps/{app_name}/machines/{machine_id}/metadata/{key}"
