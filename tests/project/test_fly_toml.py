"""fly.toml: every key is one that Fly documents, and what it says agrees with the image, the scripts and the site."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands
from django.urls import Resolver404, resolve

from machinequeue import conf
from tests.project import fly_toml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


@pytest.fixture
def config() -> dict[str, Any]:
    return tomllib.loads((ROOT / "fly.toml").read_text())


def test_every_key_is_documented(config: dict[str, Any]) -> None:
    assert fly_toml.problems(config) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("swap_size = 512", "fly.toml has no key 'swap_size'. Did you mean 'swap_size_mb'?"),
        ('[http_service]\nprocess = ["web"]', "no key 'http_service.process'. Did you mean 'processes'?"),
        (
            "[[http_service.checks]]\ngrace_time = 5",
            "'http_service.checks.grace_time'. Did you mean 'grace_period'?",
        ),
        ('kill_signal = "SIGHUP"', "kill_signal = 'SIGHUP': it takes SIGINT, SIGTERM"),
        ('kill_timeout = "half a minute"', "kill_timeout = 'half a minute': it takes duration"),
        ('[[restart]]\npolicy = "no"', "restart.policy = 'no': it takes always, never, on-failure"),
        ('[[vm]]\nmemory = "lots"', "vm.memory = 'lots': it takes size"),
        ("[env]\nWORKERS = 2", "env.WORKERS = 2: it takes string"),
        ('deploy = "rolling"', "deploy = 'rolling': it is a table"),
    ],
)
def test_a_key_or_value_that_fly_does_not_know_is_refused(text: str, sentence: str) -> None:
    (problem,) = fly_toml.problems(tomllib.loads(text))
    assert sentence in problem


def test_only_web_has_a_service_and_every_group_is_provided_for(config: dict[str, Any]) -> None:
    groups = set(config["processes"])
    assert groups == {"web", "dispatcher"}
    assert config["http_service"]["processes"] == ["web"], "autostop would stop a dispatcher"
    for section in ("vm", "restart"):
        assert sorted(name for each in config[section] for name in each["processes"]) == sorted(groups)
    policies = {name: each["policy"] for each in config["restart"] for name in each["processes"]}
    assert policies["dispatcher"] == "always"
    assert conf.Settings().process_group not in groups, "`fly deploy` would destroy machines of a group that it knows"


def test_the_machines_are_of_a_size_that_fly_sells(config: dict[str, Any]) -> None:
    for section in [*config["vm"], config["deploy"]["release_command_vm"]]:
        kind, cpus = re.fullmatch(r"(shared-cpu|performance)-(\d+)x", section["size"]).groups()  # type: ignore[union-attr]
        memory = fly_toml.megabytes(section["memory"])
        assert conf.guest_problem(kind.removesuffix("-cpu"), int(cpus), memory) is None


def test_the_port_is_the_one_that_web_binds_and_the_image_exposes(config: dict[str, Any]) -> None:
    port = config["http_service"]["internal_port"]
    assert f'--bind "${{BIND:-[::]:{port}}}"' in (ROOT / "docker/web.sh").read_text()
    assert f"\nEXPOSE {port}\n" in DOCKERFILE


def test_requests_may_end_before_the_machine_is_killed(config: dict[str, Any]) -> None:
    graceful = int(re.search(r"--graceful-timeout (\d+)", (ROOT / "docker/web.sh").read_text())[1])  # type: ignore[index]
    assert config["kill_signal"] == "SIGTERM"
    assert graceful < fly_toml.seconds(config["kill_timeout"]) <= 300


def test_the_check_asks_a_page_that_exists_as_the_site_wants_to_be_asked(config: dict[str, Any]) -> None:
    (check,) = config["http_service"]["checks"]
    assert resolve(check["path"])
    assert check["headers"]["X-Forwarded-Proto"] == "https", "a check takes the redirect to https for a failure"
    assert fly_toml.seconds(check["timeout"]) <= fly_toml.seconds(check["interval"])
    with pytest.raises(Resolver404):
        resolve(check["path"] + "no-such-page/")


def test_static_files_are_where_the_image_has_them(config: dict[str, Any]) -> None:
    from demo_site import settings

    (static,) = config["statics"]
    assert f"STATIC_ROOT={static['guest_path']}\n" in DOCKERFILE
    assert static["url_prefix"] == f"/{settings.STATIC_URL}"


def test_every_command_exists(config: dict[str, Any]) -> None:
    commands = [*config["processes"].values(), config["deploy"]["release_command"], config["console_command"]]
    for command in commands:
        program, *words = shlex.split(command)
        if program == "python":
            assert (ROOT / words[0]).is_file()
            assert words[1] in get_commands()
        else:
            script = ROOT / Path(program).relative_to("/app")
            assert script.stat().st_mode & 0o111, f"{script} is not executable"
            assert f"docker/{script.name}" in DOCKERFILE


def test_what_the_image_is_told_exists_in_it(config: dict[str, Any]) -> None:
    assert (ROOT / config["build"]["dockerfile"]).is_file()
    for name in config["build"]["args"]:
        assert re.search(rf"^ARG {name}=", DOCKERFILE, re.MULTILINE)
    assert not [name for name in config["env"] if name.startswith("FLY_")], "Fly refuses these"
