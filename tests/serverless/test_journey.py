"""Requests for serverless views, through a real edge to real servers: whatever happens to the machine, none fails."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from machinequeue.machines.errors import MachinesError
from machinequeue.machines.schema import CreateRequest
from machinequeue.models import ServerlessMachine
from tests.crash import servers
from tests.serverless.conftest import DEADLINE, UVICORN, Bursts, Site, opened
from tests.waiting import until
from tests.world import IMAGE, OLD_IMAGE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("site", [{"idle_seconds": 5, "SERVERLESS_TIMEOUT": 3}], indirect=True)
def test_no_request_fails_from_the_first_wish_to_an_idle_stop(site: Site) -> None:
    web = site.web()
    at_web = {"fly-force-instance-id": web.id}

    # No machine exists, and no dispatcher either: served in place, wished for once.
    assert set(site.burst()) == {web.id}
    until(ServerlessMachine.objects.exists, DEADLINE, site.said)
    assert set(site.burst()) == {web.id}
    assert set(site.burst(path="/posted/", method="POST")) == {web.id}
    assert ServerlessMachine.objects.count() == 1

    with site.gates.closed("closed"):
        # During creation: Fly was asked for it, and has not answered.
        with site.world.emulator.faults.hold("create", after=False) as asked_for:
            site.world.dispatcher()
            asked_for.wait(timeout=DEADLINE)
            assert set(site.burst()) == {web.id}
            assert set(site.burst(path="/posted/", method="POST")) == {web.id}
        # It runs, and its server does not accept yet.
        until(lambda: site.row(status="creating", state="started"), DEADLINE, site.said)
        assert set(site.burst()) == {web.id}
        assert set(site.burst(path="/posted/", method="POST")) == {web.id}
    # Its server begins to accept at a moment of these.
    with Bursts(site) as bursts:
        row = until(lambda: site.row(status="ready"), DEADLINE, site.said)
    assert bursts.problems == []
    assert row is not None
    assert set(bursts.machines) <= {row.fly_id, web.id}
    told = site.until_answered(lambda told: told["machine"] == row.fly_id, headers=at_web)
    assert not told["token"], "the token of the app's secrets reached it"
    for options in ({"path": "/listed/"}, {"path": "/posted/", "method": "POST"}, {"path": "/plain/"}):
        assert set(site.burst(**options)) <= {row.fly_id, web.id}

    # While it stops: its server has ended, and Fly says that it is stopping until the gate opens.
    with site.gates.closed("kept"):
        until(lambda: site.state(row.fly_id) in ("stopping", "stopped"), DEADLINE, site.said)
        assert set(site.burst()) <= {row.fly_id, web.id}
        assert set(site.burst(path="/posted/", method="POST")) <= {row.fly_id, web.id}
    # From the request to stop it until it has stopped, and when it has.
    with Bursts(site, headers=at_web) as bursts:
        site.until_answered(lambda told: told["machine"] == row.fly_id, headers=at_web)
        seen = bursts.count
        until(lambda: bursts.count > seen, DEADLINE, site.said)
    assert bursts.problems == []
    until(lambda: site.state(row.fly_id) == "stopped", DEADLINE, site.said)
    assert set(site.burst()) <= {row.fly_id, web.id}
    site.until_answered(lambda told: told["machine"] == row.fly_id)
    assert ServerlessMachine.objects.count() == 1

    # The process dies: the next requests start it again, or are served in place. What it was at is asked for again.
    with site.world.emulator.client() as client:

        def killed() -> bool:
            """It may have become idle, and stopped, since it was asked last."""
            site.ask()
            with contextlib.suppress(MachinesError):
                client.signal(row.fly_id, "SIGKILL")
                return True
            return False

        until(killed, DEADLINE, site.said)
    assert set(site.burst(once=False)) <= {row.fly_id, web.id}
    site.until_answered(lambda told: told["machine"] == row.fly_id)


def test_no_request_fails_across_a_deploy(site: Site) -> None:
    web = site.web()
    before = site.world.dispatcher()
    first = site.until_answered(lambda told: told["serverless"])
    assert first["image"] == IMAGE
    until(lambda: site.row(status="ready"), DEADLINE, site.said)
    old = {first["machine"], web.id}
    with Bursts(site) as bursts, site.gates.closed("kept"):
        assert before.end() == 0
        with site.gates.closed("closed"):
            with site.world.emulator.faults.hold("create", after=False) as asked_for:
                site.world.dispatcher(FLY_IMAGE_REF=OLD_IMAGE)  # the next release
                asked_for.wait(timeout=DEADLINE)
                assert set(site.burst()) <= old
            heir = until(lambda: site.row(status="creating", state="started"), DEADLINE, site.said)
            assert heir is not None
            # Both run; the new one does not accept yet.
            assert set(site.burst()) <= old
            assert set(site.burst(path="/posted/", method="POST")) <= old
        site.until_answered(lambda told: told["image"] == OLD_IMAGE and told["serverless"])
        assert set(site.burst()) <= {*old, heir.fly_id}
        # The old one is stopping, until the gate opens.
        until(lambda: site.state(first["machine"]) != "started", DEADLINE, site.said)
        assert set(site.burst()) <= {heir.fly_id, web.id}
        assert set(site.burst(path="/posted/", method="POST")) <= {heir.fly_id, web.id}
        (site.gates.folder / "kept").unlink()
        until(lambda: site.row(status="gone", fly_id=first["machine"]) is not None, DEADLINE, site.said)
        seen = bursts.count
        until(lambda: bursts.count > seen + 1, DEADLINE, site.said)
    assert bursts.problems == []
    # Which machine a request meets is the proxy's choice.
    assert set(bursts.machines) <= {*old, heir.fly_id}
    assert heir.fly_id in bursts.machines
    assert site.state(first["machine"]) == "destroyed"
    assert ServerlessMachine.objects.exclude(status="gone").count() == 1


NOBODY = "http://127.0.0.1:9"
"""An address at which no Machines API answers."""


def test_no_request_fails_while_the_api_is_down(site: Site) -> None:
    web = site.web()
    at_web = {"fly-force-instance-id": web.id}
    away = site.world.dispatcher(FLY_API_HOSTNAME=NOBODY)
    assert set(site.burst()) == {web.id}
    until(lambda: site.row(failures__gt=0) is not None, DEADLINE, site.said)
    assert set(site.burst()) == {web.id}
    row = site.row()
    assert row is not None
    assert row.status in ("wished", "creating")  # it is tried again and again
    assert "no machine could be created" in row.error
    assert "serverless.refused" in away.said
    assert away.end() == 0
    there = site.world.dispatcher()
    row = site.ready()
    assert (row.error, row.failures) == ("", 0)

    # A machine is there, and the API is down for the dispatcher: nobody needs it for a machine that runs.
    assert there.end() == 0
    away = site.world.dispatcher(FLY_API_HOSTNAME=NOBODY)
    until(lambda: "api.unreachable" in away.said, DEADLINE, site.said)
    both = {row.fly_id, web.id}
    for options in ({}, {"headers": at_web}, {"path": "/posted/", "method": "POST", "headers": at_web}):
        assert set(site.burst(**options)) <= both
    site.until_answered(lambda told: told["machine"] == row.fly_id, headers=at_web)

    # The API answers nobody. Fly's proxy does not ask it at all; the local edge does, so here it goes on with the list
    # that it had. Only a machine that rests could not be started by it.
    with site.world.emulator.faults.freeze() as frozen:
        frozen.wait(timeout=DEADLINE)  # the edge or the dispatcher asks in vain
        for options in ({}, {"headers": at_web}, {"path": "/posted/", "method": "POST", "headers": at_web}):
            assert set(site.burst(**options)) <= both
        site.until_answered(lambda told: told["machine"] == row.fly_id, headers=at_web)
        assert frozen.active
    assert site.row(status="ready", fly_id=row.fly_id) is not None
    assert ServerlessMachine.objects.count() == 1


@pytest.mark.skipif(connection.vendor == "sqlite", reason="a file does not go down")
def test_no_request_that_needs_no_database_fails_while_it_is_down(
    tables: None, django_db_blocker: Any, tmp_path: Path
) -> None:
    """On a PostgreSQL server of the test's own, which is killed. `tables` are those of this process."""
    with django_db_blocker.unblock(), servers.Postgres() as postgres, opened(tmp_path, "", url=postgres.url) as site:
        migrate = site.world.command("migrate", "--verbosity", "0")
        assert migrate.popen.wait(DEADLINE) == 0, migrate.said
        web = site.web()
        at_web = {"fly-force-instance-id": web.id}
        site.world.dispatcher()
        made = site.until_answered(lambda told: told["serverless"], headers=at_web)["machine"]
        assert site.http.get("/counted/", headers=at_web).status_code == 200

        postgres.end()
        # Web processes may still know the machine: it answers, without a database.
        assert set(site.burst(headers=at_web)) <= {made, web.id}
        # What they know is read again in vain: from now on nothing is sent away.
        site.until_answered(lambda told: told["machine"] == web.id, headers=at_web)
        assert set(site.burst(headers=at_web)) == {web.id}
        assert set(site.burst(path="/posted/", method="POST", headers=at_web)) == {web.id}
        assert set(site.burst()) <= {made, web.id}
        assert site.http.get("/counted/", headers=at_web).status_code == 500, "the database is there"

        postgres.start()
        site.until_answered(lambda told: told["machine"] == made, headers=at_web)
        assert site.http.get("/counted/", headers=at_web).status_code == 200


@pytest.mark.parametrize("command", [None, UVICORN], ids=["wsgi", "asgi"])
def test_the_four_cases(site: Site, command: list[str] | None) -> None:
    web = site.web(command=command) if command else site.web()
    site.world.dispatcher()
    made = site.ready().fly_id
    forced = {"fly-force-instance-id": made}
    at_web = {"fly-force-instance-id": web.id}
    site.until_answered(lambda told: told["machine"] == made, headers=at_web)  # its processes have read the row

    cases = {
        ("serverless view", "web machine"): site.until_answered(lambda told: told["src"], headers=at_web),
        ("serverless view", "serverless machine"): site.ask(headers=forced),
        ("other view", "web machine"): site.ask("/plain/", headers=at_web),
        ("other view", "serverless machine"): site.ask("/plain/", headers=forced),
    }
    answered = {case: (told["machine"], bool(told["src"])) for case, told in cases.items()}
    assert answered == {
        ("serverless view", "web machine"): (made, True),
        ("serverless view", "serverless machine"): (made, False),
        ("other view", "web machine"): (web.id, False),
        ("other view", "serverless machine"): (web.id, True),
    }

    # Other methods pass; so do large bodies; health is answered where it is asked; the async view is like the others.
    assert site.ask(method="POST", headers=at_web)["machine"] == web.id
    large = site.ask("/posted/", method="POST", content=b"x" * 1_000_001, headers=at_web)
    assert (large["machine"], large["size"], large["src"]) == (web.id, 1_000_001, "")
    small = {"method": "POST", "content": b"x" * 1_000, "headers": at_web}
    told = site.until_answered(lambda told: told["machine"] == made, "/posted/", **small)
    assert told["size"] == 1_000
    site.until_answered(lambda told: told["machine"] == made, "/awaited/", headers=at_web)
    assert site.ask("/ht/ready/", headers=forced)["machine"] == made

    # Nobody else can take it: served where it is, although it is not its view.
    with site.world.emulator.client() as client:
        client.cordon(web.id)
    told = site.until_answered(lambda told: told["machine"] == made, "/plain/")
    assert told["failed"] or told["src"]


@pytest.mark.parametrize("site", [{"SERVERLESS_KEEP": 10}], indirect=True)
def test_each_size_has_its_machine_and_loses_it_when_nobody_asks(site: Site) -> None:
    site.web()
    site.world.dispatcher()
    small = site.ready(size__memory_mb=512)
    big = site.ready("/marked/", size__memory_mb=2048)
    assert small.fly_id != big.fly_id
    assert big.size == {"cpu_kind": "shared", "cpus": 2, "memory_mb": 2048, "regions": ["iad"]}
    until(lambda: not ServerlessMachine.objects.exclude(status="gone").exists(), DEADLINE, site.said)
    assert {site.state(row.fly_id) for row in (small, big)} == {"destroyed"}


@pytest.mark.parametrize(
    "site", [{"SERVERLESS_COMMAND": ["python", "-c", "raise SystemExit('no such shop')"]}], indirect=True
)
def test_a_server_that_does_not_start_is_told_and_costs_no_request(site: Site) -> None:
    web = site.web()
    site.world.dispatcher()

    def failed() -> ServerlessMachine | None:
        assert site.ask()["machine"] == web.id
        return site.row(failures__gt=0)

    row = until(failed, DEADLINE, site.said)
    assert row is not None
    assert "exit code 1" in row.error
    assert "no such shop" in row.error
    assert set(site.burst(50)) == {web.id}


def test_a_machine_that_no_row_speaks_of_is_destroyed_and_a_foreign_one_is_not(site: Site) -> None:
    web = site.web()
    site.world.dispatcher()
    row = site.ready()
    sleep = {"cmd": ["python", "-c", "import signal; signal.pause()"]}
    config = {"image": IMAGE, "init": sleep, "restart": {"policy": "no"}}
    with site.world.emulator.client() as client:
        ours = client.get(row.fly_id).metadata
        assert "mq_site" not in ours, "the reconciler lists task machines by it"
        lost = client.create(
            CreateRequest(
                "mq-serverless-lost", "iad", {**config, "metadata": {**ours, "mq_machine": "mq-serverless-lost"}}
            )
        )
        foreign = client.create(CreateRequest("foreign", "iad", {**config, "metadata": {"mq_serverless": "another"}}))
        until(lambda: site.state(lost.id) == "destroyed", DEADLINE, site.said)
        assert site.state(foreign.id) != "destroyed"
        assert {site.state(each) for each in (row.fly_id, web.id)} == {"started"}
