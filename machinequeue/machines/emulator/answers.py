"""How the emulator refuses: Fly's statuses and words."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """An answer that is no success. `text` is Fly's sentence, `status` the HTTP status, `code` the body's `status`."""

    def __init__(self, status: int, text: str, code: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.body: dict[str, Any] = {"error": text}
        if code:
            self.body["status"] = code


def unauthorized() -> Refusal:
    return Refusal(401, "Authenticate: token validation error")


def app_not_found() -> Refusal:
    return Refusal(404, "not_found: app not found")


def machine_not_found() -> Refusal:
    return Refusal(404, "not_found: machine not found")


def bad_request(text: str) -> Refusal:
    return Refusal(400, f"invalid_argument: {text}")


def failed_precondition(text: str) -> Refusal:
    return Refusal(412, f"failed_precondition: {text}")


def host_unreachable() -> Refusal:
    return failed_precondition("machine's host is unreachable")  # our words: Fly's are not documented


def name_violation(machine_id: str, name: str) -> Refusal:
    return Refusal(
        409,
        f'already_exists: unique machine name violation, machine ID {machine_id} already exists with name "{name}"',
    )


def manifest_unknown(image: str) -> Refusal:
    return Refusal(400, f"failed to get manifest {image}: MANIFEST_UNKNOWN: manifest unknown")


def no_sandbox(image: str, why: str) -> Refusal:
    return Refusal(
        501,
        f"unimplemented: image {image} is not ours, so its machines run in a sandbox only, and none can be made "
        f"on this computer ({why}). Allow unprivileged user namespaces, or run the emulator as root",
    )


def wait_timeout(wanted: str, current: str) -> Refusal:
    return Refusal(408, f"deadline_exceeded: machine failed to reach desired state, {wanted}, currently {current}")


def execution_timeout(seconds: float) -> Refusal:
    # Our words: what Fly answers is not documented.
    return Refusal(408, f"deadline_exceeded: command did not end within {seconds:g}s and was killed")


def lease_held(owner: str, expires: str) -> Refusal:
    return Refusal(409, f"aborted: lease currently held by {owner}, expires at {expires}")


def lease_not_found() -> Refusal:
    return Refusal(404, "not_found: lease not found")


def concurrent_update() -> Refusal:
    return Refusal(409, "aborted: machine update failed due to concurrent update")


def rate_limited() -> Refusal:
    return Refusal(429, "resource_exhausted: rate limit exceeded")


def not_emulated(what: str) -> Refusal:
    return Refusal(501, f"unimplemented: {what} is not emulated")
