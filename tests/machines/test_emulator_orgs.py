"""The calls about all of an organisation."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from machinequeue.machines.client import MachinesClient
from tests.machines.conftest import IMAGE, Create, python

ORG = "/v1/orgs/personal/machines"
PLACEMENTS = "/v1/platform/placements"


def resting(client: MachinesClient, create: Create, **config: Any) -> str:
    made = create(python("pass", **config), skip_launch=True)
    client.wait(made.id, "stopped")
    return made.id


def test_machines_of_every_app_are_listed_by_their_last_change(
    http: httpx.Client, client: MachinesClient, create: Create
) -> None:
    http.post("/v1/apps", json={"name": "neighbour", "org_slug": "personal"})
    try:
        one = resting(client, create, metadata={"test": "orgs"}, env={"KEY": "never-shown"})
        body = {"config": python("pass"), "skip_launch": True}
        two = http.post("/v1/apps/neighbour/machines", json=body).json()["id"]
        client.set_metadata(one, "changed", "1")
        answer = http.get(ORG)
        rows = answer.json()["machines"]
        assert [row["updated_at"] for row in rows] == sorted(row["updated_at"] for row in rows)
        found = {row["id"]: row for row in rows}
        assert (found[one]["app_name"], found[two]["app_name"]) == ("shop", "neighbour")
        assert found[one]["config"] == {"image": IMAGE, "metadata": {"test": "orgs", "changed": "1"}}
        assert (found[one]["state"], found[one]["region"]) == ("stopped", "iad")
        assert "never-shown" not in answer.text
        assert answer.json()["error_regions"] == []
        assert all("config" not in row for row in http.get(ORG, params={"summary": "true"}).json()["machines"])
    finally:
        http.delete("/v1/apps/neighbour")


def test_pages_of_an_org_hold_every_machine_once(http: httpx.Client, client: MachinesClient, create: Create) -> None:
    for _ in range(5):
        resting(client, create)
    everybody = [row["id"] for row in http.get(ORG).json()["machines"]]
    found: list[str] = []
    params = {"limit": "2"}
    while True:
        page = http.get(ORG, params=params).json()
        found += [row["id"] for row in page["machines"]]
        assert page["last_machine_id"] == found[-1]
        if not page.get("next_cursor"):
            break
        params["cursor"] = page["next_cursor"]
    assert found == everybody
    last = http.get(ORG, params={"updated_after": page["last_updated_at"]}).json()
    assert last["machines"] == []


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"cursor": "nonsense"}, 400),
        ({"limit": "1001"}, 400),
        ({"updated_after": "yesterday"}, 400),
        ({"updated_after": "2026-01-01T00:00:00"}, 400),
        ({"updated_after": "2026-01-01T00:00:00Z"}, 200),
        ({"region": "cdg"}, 200),
    ],
)
def test_a_list_of_an_org_asks_sensibly(http: httpx.Client, params: dict[str, str], status: int) -> None:
    assert http.get(ORG, params=params).status_code == status
    assert http.get("/v1/orgs/unknown/machines").status_code == 400


def placed(http: httpx.Client, **body: Any) -> list[tuple[str, int]]:
    answer = http.post(PLACEMENTS, json={"org_slug": "personal", **body})
    assert answer.status_code == 200, answer.text
    return [(row["region"], row["count"]) for row in answer.json()["regions"]]


def test_placements_prefer_the_region_asked_for_first(http: httpx.Client) -> None:
    assert placed(http, region="lhr,eu", count=3) == [("lhr", 3)]
    assert placed(http, count=1, compute={"cpu_kind": "shared", "cpus": 2, "memory_mb": 512}) == [("iad", 1)]
    limits = placed(http, region="lhr,eu")
    assert [region for region, _ in limits] == ["lhr", "ams", "arn", "cdg", "fra"]
    assert len({limit for _, limit in limits}) == 1
    assert placed(http)[0][0] == "iad"
    assert len(placed(http)) == 18


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "organization None not found"),
        ({"org_slug": "unknown"}, 400, "organization 'unknown' not found, there is only 'personal'"),
        ({"org_slug": "personal", "region": "moon"}, 400, "target region 'moon' not found"),
        ({"org_slug": "personal", "region": 7}, 400, "region must be a string"),
        ({"org_slug": "personal", "count": -1}, 400, "count must be"),
        ({"org_slug": "personal", "compute": {"cpus": 3}}, 400, "cpus"),
        ({"org_slug": "personal", "compute": []}, 400, "compute must be an object"),
    ],
)
def test_a_placement_that_makes_no_sense(http: httpx.Client, body: dict[str, Any], status: int, words: str) -> None:
    answer = http.post(PLACEMENTS, json=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]
