"""System checks: every wrong setting, its id, its words and a hint."""

from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connections

import demo_site.urls
from machinequeue import checks

assert demo_site.urls, "its tasks are declared before a test makes the settings wrong"
pytestmark = pytest.mark.django_db  # some of Django's own checks ask SQLite what it can do


def messages(**kwargs: Any) -> dict[str, Any]:
    return {message.id: message for message in run_checks(**kwargs) if str(message.id).startswith("machinequeue")}


def test_the_settings_of_these_tests_pass() -> None:
    assert messages() == {}
    assert messages(databases=["default"]) == {}


@pytest.mark.parametrize(
    ("change", "id_", "says"),
    [
        ({"MACHINEQUEUE": {"HEARTBEATS": 3}}, "machinequeue.E001", "Did you mean"),
        ({"MACHINEQUEUE": {"LEASE_SECONDS": 1}}, "machinequeue.E001", "three times"),
        ({"MACHINEQUEUE": "app"}, "machinequeue.E001", "must be a dict"),
        ({"MACHINEQUEUE": {"ENV": {"FLY_API_TOKEN": "t"}}}, "machinequeue.E004", "to every task machine"),
        ({"MACHINEQUEUE": {"ENV": {"MACHINEQUEUE_CONTAINER_TOKEN": "t"}}}, "machinequeue.E004", "every task machine"),
        (
            {"TASKS": {"default": {"BACKEND": "machinequeue.MachineBackend", "QUEUES": {"q": {"memory": 1}}}}},
            "machinequeue.E002",
            "Did you mean 'memory_mb'?",
        ),
        (
            {"TASKS": {"default": {"BACKEND": "machinequeue.MachineBackend", "OPTIONS": {"timeout": 1e6}}}},
            "machinequeue.E002",
            "longer than machine_life",
        ),
        (
            {"TASKS": {"default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"}}},
            "machinequeue.W003",
            "no entry of TASKS uses it",
        ),
        ({"USE_TZ": False}, "machinequeue.E003", "USE_TZ"),
        (
            {"MACHINEQUEUE": {"SERVERLESS_VIEWS": ["reports:show"]}},
            "machinequeue.E001",
            "must be a list such as [('reports:show', ['GET'])], not ['reports:show'] (list)",
        ),
        *[
            ({"TASKS": {"default": {"BACKEND": "machinequeue.MachineBackend", **wrong}}}, "machinequeue.E002", says)
            for wrong, says in (
                ({"QUEUES": "reports"}, "must be a list of names or a dict of dicts, not 'reports'"),
                ({"OPTIONS": ["timeout"]}, "['OPTIONS'] must be a dict, not list"),
            )
        ],
    ],
)
def test_a_wrong_setting_is_a_message_with_a_hint(settings: Any, change: dict[str, Any], id_: str, says: str) -> None:
    for name, value in change.items():
        setattr(settings, name, value)
    message = messages()[id_]
    assert says in message.msg
    assert message.hint


def test_redis_that_is_not_installed_is_told(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MACHINEQUEUE = {"REDIS_URL": "redis://:password-9@cache/0"}
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    message = messages()["machinequeue.E005"]
    assert "not installed" in message.msg
    assert "machinequeue[redis]" in message.hint
    assert "password-9" not in str(message)


def test_a_wrong_secret_is_told_without_the_secret(settings: Any) -> None:
    settings.MACHINEQUEUE = {"API_TOKEN": ["FlyV1 secret"]}
    assert "FlyV1 secret" not in str(messages()["machinequeue.E001"])


def test_sqlite_without_what_several_writers_need_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        alias, vendor = "default", "sqlite"
        settings_dict: dict[str, Any] = {"OPTIONS": {}}

    monkeypatch.setattr(checks, "connections", {"default": Connection()})
    found = {message.id: message for message in checks.check_sqlite()}
    assert set(found) == {"machinequeue.W001", "machinequeue.W002"}
    assert "IMMEDIATE" in str(found["machinequeue.W001"].hint)
    assert "journal_mode=WAL" in str(found["machinequeue.W002"].hint)
    assert connections["default"].vendor in ("sqlite", "postgresql")


@pytest.mark.parametrize("missing", ["FLY_API_TOKEN", "FLY_APP_NAME", "FLY_IMAGE_REF"])
def test_a_dispatcher_that_lacks_something_says_what_and_where_it_comes_from(
    settings: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in ("FLY_API_TOKEN", "FLY_APP_NAME", "FLY_IMAGE_REF"):
        monkeypatch.setenv(name, "something")
    monkeypatch.delenv(missing)
    settings.MACHINEQUEUE = {}
    with pytest.raises(CommandError, match=f"Not set: {missing}") as caught:
        call_command("mq_dispatcher")
    assert "mq_dev" in str(caught.value)
    if missing != "FLY_IMAGE_REF":
        with pytest.raises(CommandError, match=f"Not set: {missing}"):
            call_command("mq_reconcile")


@pytest.mark.parametrize("address", ["http://127.0.0.1:abc", "http://127.0.0.1:99999"])
def test_an_address_whose_port_is_none_is_told(settings: Any, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("FLY_API_HOSTNAME", address)
    settings.MACHINEQUEUE = {}
    assert f"is no address, as https://api.machines.dev and http://127.0.0.1:4280 are: {address!r}" in str(
        messages()["machinequeue.E001"].msg
    )
    for command in ("mq_emulator", "mq_edge", "mq_dev", "mq_dispatcher", "mq_reconcile"):
        with pytest.raises(CommandError, match="FLY_API_HOSTNAME"):
            call_command(command)


def test_a_dispatcher_with_wrong_settings_does_not_start(settings: Any) -> None:
    settings.MACHINEQUEUE = {"MAX_MACHINE": 3}
    with pytest.raises(CommandError, match="Did you mean 'MAX_MACHINES'"):
        call_command("mq_dispatcher")


@pytest.mark.django_db
def test_more_machines_than_the_database_has_connections_for_are_told(settings: Any) -> None:
    if connections["default"].vendor == "sqlite":
        pytest.skip("a file has no connections to run out of")
    settings.MACHINEQUEUE = {"MAX_MACHINES": 100_000}
    [message] = checks.check_connections()
    assert message.id == "machinequeue.W004"
    assert "100000 machines may hold 300000 database connections" in str(message.msg)
    assert "DATABASE_CONNECTIONS" in str(message.hint)
    settings.MACHINEQUEUE = {"MAX_MACHINES": 100_000, "DATABASE_CONNECTIONS": 30}
    assert checks.check_connections() == []
