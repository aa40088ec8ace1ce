"""The calls about apps, their secrets, tokens, regions and logs."""

from __future__ import annotations

import asyncio
from typing import Any

from machinequeue.machines.emulator import names, regions
from machinequeue.machines.emulator.answers import Refusal, bad_request, not_emulated, unauthorized
from machinequeue.machines.emulator.calls import Call, Reply
from machinequeue.machines.emulator.machine import AT_REST
from machinequeue.machines.emulator.output import Line
from machinequeue.machines.emulator.world import ORGANIZATION, App, World

LOG_PAGE = 100
LARGEST_APP_PAGE = 5000

_deletions: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive


async def find(call: Call) -> Any:
    """All apps, with `limit` in pages."""
    apps = [app.described() for app in call.world.apps.values()]
    limit, cursor = call.number("limit", 0, 1, LARGEST_APP_PAGE), call.query("cursor")
    ids = [app["id"] for app in apps]
    if cursor and cursor not in ids:
        raise bad_request("invalid cursor")
    rest = apps[ids.index(cursor) + 1 :] if cursor else apps
    page = rest[:limit] if limit else rest
    more = {"next_cursor": page[-1]["id"]} if len(page) < len(rest) else {}
    return {"total_apps": len(apps), "apps": page, **more}


async def create(call: Call) -> Any:
    """A new app; with an idempotency key the app that the first request with it created."""
    body = await call.body()
    name, key = body.get("name") or body.get("app_name"), body.get("idempotency_key") or ""
    if not isinstance(key, str):
        raise bad_request("idempotency_key must be a string")
    made = call.world.apps.get(call.world.app_keys.get(key, "")) if key else None
    if made is not None and name not in (None, "", made.name):
        raise Refusal(422, "idempotency_key was used for an app of another name")
    app = made or call.world.create_app(name or names.machine_name())
    if key:
        call.world.app_keys[key] = app.name
    return Reply({"id": app.name, "created_at": app.created_ms}, 201)


async def get(call: Call) -> Any:
    return call.app.described()


async def delete(call: Call) -> Any:
    """Delete the app: with `force` at once, else once none of its machines runs any more."""
    app = call.app
    running = [machine for machine in app.living() if machine.state not in AT_REST]
    if call.flag("force") or not running:
        call.world.delete_app(app.name)
    else:
        task = asyncio.create_task(_delete_at_rest(call.world, app))
        _deletions.add(task)
        task.add_done_callback(_deletions.discard)
    return Reply(status=202)


async def _delete_at_rest(world: World, app: App) -> None:
    while running := [machine for machine in app.living() if machine.state not in AT_REST]:
        await running[0].wait([*AT_REST, "destroyed"], timeout_seconds=None)
    if world.apps.get(app.name) is app:
        world.delete_app(app.name)


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
    if call.request.path_params["app"] not in call.world.apps:
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
        "apps": [*call.world.apps],
        "user": "",
    }
    return {"tokens": [row]}


async def platform_regions(call: Call) -> Any:
    return regions.described(call.world.ground.region)


async def missing(call: Call) -> Any:
    raise not_emulated(f"{call.request.method} {call.request.url.path}")
