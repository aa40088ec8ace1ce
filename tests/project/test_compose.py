"""compose.yaml: it reads as Compose reads it, and what it starts is there and gets what it needs."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import get_commands

from demo_site.buckets import KEYS, bucket_storage
from demo_site.databases import database_from_url
from machinequeue.machines.emulator import options
from tests.project.image import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "machinequeue-demo"}
KNOWN = {
    *("image", "init", "restart", "stop_grace_period", "build", "environment", "command", "depends_on"),
    *("ports", "volumes", "healthcheck", "network_mode"),
}


def test_it_has_what_a_deployment_has() -> None:
    assert set(SERVICES) == {"postgres", "redis", "s3", "prepare", "web", "machines", "dispatcher"}
    assert set(OURS) == {"prepare", "web", "machines", "dispatcher"}
    assert set(COMPOSE) == {"name", "services", "volumes", "x-app", "x-environment"}
    for name, service in SERVICES.items():
        assert set(service) <= KNOWN, name


def test_everybody_waits_for_services_that_exist_and_tell_when_they_are_ready() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert SERVICES[other]["healthcheck"]["test"]
            elif how["condition"] == "service_completed_successfully":
                assert other == "prepare"
            else:
                assert how["condition"] == "service_started"
    assert SERVICES["dispatcher"]["network_mode"] == "service:machines"


def test_nothing_is_open_to_other_computers() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_processes_get_values_that_the_settings_read(name: str) -> None:
    environment = OURS[name]["environment"]
    assert all(isinstance(value, str) for value in environment.values())
    read = (ROOT / "demo_site/settings.py").read_text() + (ROOT / "demo_site/buckets.py").read_text()
    read += (ROOT / "machinequeue/conf.py").read_text() + (ROOT / "docker/web.sh").read_text()
    for variable in environment:
        assert variable in read, f"nothing reads {variable}"
    database = database_from_url(environment["DATABASE_URL"])
    server = SERVICES[database["HOST"]]["environment"]
    assert (database["USER"], database["PASSWORD"], database["NAME"]) == (
        server["POSTGRES_USER"],
        server["POSTGRES_PASSWORD"],
        server["POSTGRES_DB"],
    )
    assert bucket_storage(environment, location="media")
    assert re.match(r"http://(\w+):", environment["AWS_ENDPOINT_URL_S3"])[1] in SERVICES  # type: ignore[index]
    assert set(KEYS) <= environment.keys()


def test_our_commands_exist() -> None:
    assert Path(OURS["web"]["command"][0]).relative_to("/app").as_posix() == "docker/web.sh"
    for name in ("web", "dispatcher"):
        assert (ROOT / Path(OURS[name]["command"][0]).relative_to("/app")).stat().st_mode & 0o111
    for line in OURS["prepare"]["command"][2].splitlines():
        words = shlex.split(line)
        assert words[:2] == ["python", "-c"] or words[2] in get_commands()
    compile(shlex.split(OURS["prepare"]["command"][2].splitlines()[1])[2], "compose.yaml", "exec")


def test_the_dispatcher_finds_the_emulator_and_its_token(tmp_path: Path) -> None:
    command, dispatcher = OURS["machines"]["command"], OURS["dispatcher"]["environment"]
    assert command[:3] == ["python", "-m", "machinequeue.machines.emulator"]
    words = [word.replace("/app:/venv/bin/python", str(tmp_path)).replace("/app/", f"{tmp_path}/") for word in command]
    read = options.parse(words[3:], OURS["machines"]["environment"])
    assert dispatcher["FLY_API_HOSTNAME"] == f"http://127.0.0.1:{read.port}"
    assert read.apps == (dispatcher["FLY_APP_NAME"],)
    assert read.token == dispatcher["FLY_API_TOKEN"]
    assert [image.reference for image in read.images] == [dispatcher["FLY_IMAGE_REF"]]
    assert read.secrets["DATABASE_URL"] == dispatcher["DATABASE_URL"]
    assert "FLY_API_TOKEN" not in read.secrets


def test_the_servers_are_of_the_versions_that_the_image_is_made_for() -> None:
    major = SERVICES["postgres"]["image"].partition(":")[2]
    assert OURS["prepare"]["build"]["args"]["POSTGRES_MAJOR"] == major
    assert f"ARG POSTGRES_MAJOR={major}\n" in (ROOT / "docker/Dockerfile").read_text()
    pinned = re.search(r"^moto==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert SERVICES["s3"]["image"] == f"motoserver/moto:{pinned[1]}"
