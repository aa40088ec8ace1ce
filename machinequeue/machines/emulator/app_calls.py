"""The calls about apps, their secrets, tokens, regions and logs."""

from __future__ import annotations

from typing import Any

from machinequeue.machines.emulator import regions
from machinequeue.machines.emulator.answers import Refusal, bad_request, not_emulated, unauthorized
from machinequeue.machines.emulator.calls import Call, Reply
from machinequeue.machines.emulator.output import Line
from machinequeue.machines.emulator.world import ORGANIZATION

LOG_PAGE = 100


async def find(call: Call) -> Any:
    apps = [app.described() for app in call.office.world.apps.values()]
    return {"total_apps": len(apps), "apps": apps}


async def create(call: Call) -> Any:
    body = await call.body()
    app = call.office.world.create_app(body.get("name") or body.get("app_name"))
    return Reply({"id": app.name, "created_at": app.created_ms}, 201)


async def get(call: Call) -> Any:
    return call.app.described()


async def delete(call: Call) -> Any:
    call.office.world.delete_app(call.app.name)
    return Reply(status=202)


async def secrets(call: Call) -> Any:
    app = call.app
    return {"secrets": [app.described_secret(name) for name in sorted(app.secrets)]}


async def set_secrets(call: Call) -> Any:
    app = call.app
    values = (await call.body()).get("values")
    if not isinstance(values, dict):
        raise bad_request("values must be a map of strings")
    app.set_secrets(values)
    rows = [app.described_secret(name) for name in sorted(app.secrets)]
    return {"secrets": rows, "version": app.secrets_version, "Version": app.secrets_version}


async def secret(call: Call) -> Any:
    app, name = call.app, call.request.path_params["name"]
    if name not in app.secrets:
        raise Refusal(404, "not_found: secret not found")
    return app.described_secret(name)


async def set_secret(call: Call) -> Any:
    app, name = call.app, call.request.path_params["name"]
    value = (await call.body()).get("value")
    if not isinstance(value, str):
        raise bad_request("value must be a string")
    app.set_secrets({name: value})
    return Reply({**app.described_secret(name), "version": app.secrets_version}, 201)


async def unset_secret(call: Call) -> Any:
    app, name = call.app, call.request.path_params["name"]
    if name not in app.secrets:
        raise Refusal(404, "not_found: secret not found")
    app.set_secrets({name: None})
    return {"version": app.secrets_version, "Version": app.secrets_version}


async def logs(call: Call) -> Any:
    """Lines of one machine, or of all; `next_token` is nanoseconds. Without one the 100 newest, oldest first."""
    if call.request.path_params["app"] not in call.office.world.apps:
        raise unauthorized()  # as Fly answers for the logs of an unknown app
    app = call.app
    instance, region = call.query("instance"), call.query("region")
    token = call.number("next_token", 0, 0, 2**63)
    rows: list[tuple[Line, str, str]] = [
        (line, machine.id, machine.region)
        for machine in app.machines.values()
        if instance in ("", machine.id) and region in ("", machine.region)
        for line in machine.output.after(token)
    ]
    rows.sort(key=lambda row: row[0].at)
    page = rows[:LOG_PAGE] if token else rows[-LOG_PAGE:]
    last = str(page[-1][0].at) if page else (str(token) if token else "")
    return {"data": [line.described(*where) for line, *where in page], "meta": {"next_token": last}}


async def current_token(call: Call) -> Any:
    row = {
        "token_id": "emulator",
        "org_slug": ORGANIZATION,
        "organization": ORGANIZATION,
        "apps": [*call.office.world.apps],
        "user": "",
    }
    return {"tokens": [row]}


async def platform_regions(call: Call) -> Any:
    return regions.described(call.office.world.ground.region)


async def missing(call: Call) -> Any:
    raise not_emulated(f"{call.request.method} {call.request.url.path}")
