"""Hold an answer against the specification of the Machines API, more strictly than the specification itself:
a property that it does not know is a deviation too, and every deviation must be listed in `deviations`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs

from tests.machines.deviations import DEVIATIONS, JSON

DOCUMENT = Path(__file__).with_name("specification") / "openapi.json"
GIVEN_BACK = "fly.MachineConfig"  # as it was sent, see the deviations
UNROUTED = "404 page not found\n"

Schema = dict[str, Any]


@functools.cache
def document() -> Schema:
    """The whole OpenAPI document."""
    loaded: Schema = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    return loaded


@dataclass(frozen=True)
class Operation:
    """One call of the specification; `label` is "GET /v1/apps/{app_name}"."""

    label: str
    path: re.Pattern[str]
    answers: Mapping[str, Schema]


@dataclass(frozen=True)
class Exchange:
    """What was asked (`path` as sent, escaped) and what came back; `media` without parameters."""

    method: str
    path: str
    status: int
    media: str
    body: bytes

    def problem(self) -> str:
        """What neither the specification nor the list of deviations allows; empty when all is well."""
        operation = find_operation(self.method, self.path)
        found = self._unrouted() if operation is None else self._answered(operation)
        return f"{self.method} {self.path} answered {self.status}: {found}" if found else ""

    def _unrouted(self) -> str:
        text = "" if self.method == "HEAD" else UNROUTED
        if (self.status, self.media, self.body.decode()) == (404, "text/plain", text):
            return ""
        return "it is no call of the specification, and not answered as such"

    def _answered(self, operation: Operation) -> str:
        documented = operation.answers.get(str(self.status))
        if documented is None:
            return self._deviates(operation)
        content = documented.get("content")
        if not content:
            return ""
        if self.media not in content:
            return f"content type {self.media!r} is none of {', '.join(content)}"
        return self._fits(operation, json.dumps(content[self.media].get("schema", {})))

    def _deviates(self, operation: Operation) -> str:
        allowed = [each.media for each in DEVIATIONS if each.status == self.status and each.covers(operation.label)]
        if not allowed:
            return f"an undocumented status: {self.body[:300]!r}"
        if self.media not in allowed:
            return f"content type {self.media!r} is none of {', '.join(allowed)}"
        if self.media != JSON:
            return ""
        return self._fits(operation, '{"$ref": "#/components/schemas/ErrorResponse"}')

    def _fits(self, operation: Operation, schema: str) -> str:
        if self.media != JSON:
            return ""
        try:
            value = json.loads(self.body)
        except ValueError:
            return f"no JSON: {self.body[:300]!r}"
        for error in _validator(schema).iter_errors(value):
            unknown = {*getattr(error.kind, "unexpected", ())}
            if not unknown or unknown - _known_fields(operation.label):
                return f"at /{'/'.join(map(str, error.instance_path))}: {error.message}"
        return ""


def find_operation(method: str, path: str) -> Operation | None:
    """The operation that a request means, None when it is none of the specification."""
    path = path.partition("?")[0]
    for operation in _operations():
        if operation.label.startswith(f"{method} ") and operation.path.fullmatch(path):
            return operation
    return None


@functools.cache
def _operations() -> list[Operation]:
    """Those with the fewest parameters first; one that was left out of the excerpt has no answers."""
    answers = {
        f"{method.upper()} {path}": call["responses"]
        for path, calls in document()["paths"].items()
        for method, call in calls.items()
    }
    answers |= {label: {} for label in document()["x-left-out"]}
    return [
        Operation(label, re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(label.partition(" ")[2]))), answers[label])
        for label in sorted(answers, key=lambda label: label.count("{"))
    ]


def _known_fields(label: str) -> set[str]:
    return {field for each in DEVIATIONS if each.covers(label) for field in each.fields}


@functools.cache
def _validator(schema: str) -> Any:
    return jsonschema_rs.Draft4Validator({**json.loads(schema), "components": _closed_components()})


@functools.cache
def _closed_components() -> Schema:
    schemas = document()["components"]["schemas"]
    return {"schemas": {**{name: _closed(each) for name, each in schemas.items()}, GIVEN_BACK: {}}}


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(each) for key, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type", "object") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
