"""Settings: one table, read from a dict and the environment, wrong values told in sentences."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machinequeue import conf
from machinequeue.errors import ConfigurationError

TOKEN = "FlyV1 fm2_secret-of-the-app"


def read(values: object, environ: dict[str, str] | None = None, *, debug: bool = False) -> tuple[Any, list[str]]:
    return conf.read_settings(values, environ or {}, debug=debug)


def test_an_empty_dict_gives_the_declared_defaults_and_the_public_api() -> None:
    settings, problems = read({})
    assert problems == []
    assert settings == conf.Settings(api_url=conf.PUBLIC_API)
    assert settings.heartbeat_seconds * 3 <= settings.lease_seconds


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("APPS", "APP"), ("HEARTBEAT_SECOND", "HEARTBEAT_SECONDS"), ("REDIS", "REDIS_URL"), ("max_machines", None)],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known_one(wrong: str, meant: str | None) -> None:
    _, [problem] = read({wrong: "x"})
    assert f"MACHINEQUEUE has no setting {wrong!r}." in problem
    if meant:
        assert f"Did you mean {meant!r}?" in problem
    else:
        assert "Known: " in problem
        assert "MAX_MACHINES" in problem


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("APP", 3, "must be str, not 3 (int)"),
        ("MAX_MACHINES", "20", "must be int, not '20' (str)"),
        ("MAX_MACHINES", True, "must be int, not True (bool)"),
        ("MAX_MACHINES", 0, "must be at least 1, not 0"),
        ("HEARTBEAT_SECONDS", None, "must be float, not None (NoneType)"),
        ("COMMAND", "python manage.py mq_run", "must be list[str]"),
        ("COMMAND", ["python", 1], "must be list[str]"),
        ("ENV", {"A": 1}, "must be dict[str, str]"),
        ("ALLOW_WAIT_IN_TASK", 1, "must be bool, not 1 (int)"),
        ("OUTPUT_BYTES", 10, "must be at least 1024, not 10"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_name(key: str, value: Any, says: str) -> None:
    settings, problems = read({key: value})
    assert any(f"MACHINEQUEUE[{key!r}] {says}" in problem for problem in problems)
    assert getattr(settings, key.lower()) == getattr(conf.Settings(), key.lower()), "a refused value must not be used"


def test_not_a_dict_is_a_sentence_and_no_crash() -> None:
    _, problems = read(["APP"])
    assert problems == ["MACHINEQUEUE must be a dict, not list."]


def test_a_whole_number_is_a_duration_too() -> None:
    settings, problems = read({"HEARTBEAT_SECONDS": 5, "LEASE_SECONDS": 15})
    assert (settings.heartbeat_seconds, settings.lease_seconds, problems) == (5, 15, [])


def test_a_lease_under_three_heartbeats_contradicts() -> None:
    _, [problem] = read({"HEARTBEAT_SECONDS": 10, "LEASE_SECONDS": 29})
    assert "LEASE_SECONDS" in problem
    assert "three times" in problem


ENVIRONMENT = {
    "FLY_APP_NAME": "shop",
    "FLY_API_TOKEN": TOKEN,
    "FLY_API_HOSTNAME": "http://_api.internal:4280/",
    "FLY_IMAGE_REF": "registry/shop:1",
    "REDIS_URL": "redis://:pass@cache/0",
    "MACHINEQUEUE_STATE_DIR": "/data",
}


def test_the_environment_stands_over_the_defaults_and_under_the_dict() -> None:
    settings, problems = read({}, ENVIRONMENT)
    assert problems == []
    assert settings.app == "shop"
    assert settings.api_token == TOKEN
    assert settings.api_url == "http://_api.internal:4280"
    assert settings.image == "registry/shop:1"
    assert settings.redis_url == "redis://:pass@cache/0"
    assert settings.state_dir == "/data"
    assert read({"APP": "other"}, ENVIRONMENT)[0].app == "other"


def test_an_empty_variable_counts_as_unset() -> None:
    assert read({}, {"FLY_APP_NAME": "", "REDIS_URL": ""})[0].app == ""


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("api.example.net", "https://api.example.net"),
        ("_api.internal:4280", "http://_api.internal:4280"),
        ("127.0.0.1:4280/", "http://127.0.0.1:4280"),
        ("localhost:4280", "http://localhost:4280"),
        ("http://[no-address", "http://[no-address"),
    ],
)
def test_an_address_without_a_scheme_is_https_unless_it_is_a_private_one(given: str, meant: str) -> None:
    assert read({"API_URL": given})[0].api_url == meant


@pytest.mark.parametrize(
    ("url", "rate"), [("https://api.machines.dev", 1.0), ("http://127.0.0.1:4280", 0.0), ("http://[::1]:4280", 0.0)]
)
def test_the_rate_of_calls_is_fly_s_unless_the_api_is_on_loopback(url: str, rate: float) -> None:
    assert read({"API_URL": url})[0].api_rate == rate
    assert read({"API_URL": url, "API_RATE": 3})[0].api_rate == 3
    assert "must be at least 0" in read({"API_RATE": -1})[1][0]
    assert "Did you mean 'API_RATE'?" in read({"API_RATES": 1})[1][0]


def test_with_debug_and_no_token_the_emulator_is_meant() -> None:
    settings, problems = read({}, {}, debug=True)
    assert (settings.app, settings.image, settings.api_url) == ("local", conf.EMULATOR_IMAGE, conf.EMULATOR_API)
    assert problems == []
    assert read({"APP": "mine"}, {}, debug=True)[0].app == "mine"


def test_with_a_token_debug_does_not_redirect_to_the_emulator() -> None:
    settings, _ = read({}, ENVIRONMENT, debug=True)
    assert settings.api_url == "http://_api.internal:4280"
    assert settings.api_token == TOKEN


def test_no_secret_appears_in_repr_or_in_any_problem() -> None:
    settings, _ = read({}, ENVIRONMENT)
    assert TOKEN not in repr(settings)
    assert "pass@cache" not in repr(settings)
    for key in ("API_TOKEN", "REDIS_URL"):
        _, problems = read({key: [TOKEN]})
        assert problems, key
        assert TOKEN not in " ".join(problems)


def test_settings_raises_every_problem_at_once(settings: Any) -> None:
    settings.MACHINEQUEUE = {"HEARTBEATS": 1, "MAX_MACHINES": "many"}
    with pytest.raises(ConfigurationError) as caught:
        conf.settings()
    assert "'HEARTBEATS'" in str(caught.value)
    assert "'MAX_MACHINES'" in str(caught.value)


def test_every_declared_setting_has_a_sentence_and_every_unit_is_named() -> None:
    for table in (conf.Settings, conf.Policy):
        for declared in table.__dataclass_fields__.values():
            assert declared.metadata["help"].endswith("."), declared.name


SETTINGS_PAGE = Path(__file__).parents[2] / "docs/reference/settings.md"


@pytest.mark.parametrize("table", [conf.Settings, conf.Policy])
def test_the_page_of_settings_says_what_is_declared_in_that_order(table: Any) -> None:
    every_row = re.findall(r"^\| (`.*) \|$", SETTINGS_PAGE.read_text(), re.MULTILINE)
    rows = [row for row in every_row if row.split("`")[1].isupper() == (table is conf.Settings)]
    assert rows == [" | ".join(_cells(table, declared)) for declared in dataclasses.fields(table)]


def _cells(table: Any, declared: dataclasses.Field[Any]) -> list[str]:
    wanted, meta = get_type_hints(table)[declared.name], declared.metadata
    kind = str(wanted) if get_origin(wanted) else wanted.__name__
    default = getattr(table(), declared.name)
    shown = "" if default == "" else f"`{default!r}`"
    if table is conf.Settings:
        variable = f"`{meta['env']}`" if meta["env"] else ""
        return [f"`{declared.name.upper()}`", kind, shown, variable, meta["help"]]
    star = " *" if declared.name in conf.TASK_OPTIONS else ""
    choices = f" One of {', '.join(meta['choices'])}." if meta["choices"] else ""
    return [f"`{declared.name}`{star}", kind, shown, meta["help"] + choices]


# Policies -----------------------------------------------------------------------------------------------------------


def policies(queues: Any, options: dict[str, Any] | None = None) -> tuple[dict[str, conf.Policy], list[str]]:
    return conf.read_policies({"QUEUES": queues, "OPTIONS": options or {}}, "TASKS['default']")


def test_queues_may_be_a_list_of_names_or_a_dict_of_policies() -> None:
    listed, problems = policies(["default", "reports"])
    assert problems == []
    assert listed == {"default": conf.Policy(), "reports": conf.Policy()}
    dicted, problems = policies({"default": {}, "reports": {"memory_mb": 2048, "regions": ("iad", "us")}})
    assert problems == []
    assert dicted["reports"].memory_mb == 2048
    assert dicted["reports"].regions == ["iad", "us"]


def test_a_backend_without_queues_has_the_one_called_default() -> None:
    assert set(conf.read_policies({}, "TASKS['default']")[0]) == {"default"}


def test_a_queue_says_more_than_the_options_and_the_options_more_than_the_defaults() -> None:
    read_in, _ = policies({"a": {"timeout": 5}, "b": {}}, {"timeout": 50, "max_attempts": 4})
    assert (read_in["a"].timeout, read_in["b"].timeout) == (5, 50)
    assert read_in["a"].max_attempts == 4
    assert read_in["a"].memory_mb == conf.Policy().memory_mb


@pytest.mark.parametrize(
    ("queue", "says"),
    [
        ({"memory": 512}, "Did you mean 'memory_mb'?"),
        ({"cpu_kind": "fast"}, "must be one of shared, performance, not 'fast'"),
        ({"timeout": 3590, "machine_life": 3600}, "longer than machine_life"),
        ({"cpus": 3}, "cpus=3 is no size"),
        ({"memory_mb": 300}, "in steps of 256"),
        ({"memory_mb": 4096}, "Possible: 256 to 2048"),
        ({"cpu_kind": "performance", "cpus": 2, "memory_mb": 2048}, "Possible: 4096 to 16384"),
        ({"isolation": "thread"}, "must be one of"),
        ("reports", "must be a dict, not str"),
    ],
)
def test_a_wrong_or_contradictory_queue_is_told_with_its_place(queue: Any, says: str) -> None:
    _, problems = policies({"q": queue})
    assert problems
    assert all("TASKS['default']['QUEUES']['q']" in problem for problem in problems)
    assert any(says in problem for problem in problems), problems


@given(
    cpu_kind=st.sampled_from(["shared", "performance"]),
    cpus=st.integers(1, 20),
    memory_mb=st.integers(1, 200).map(lambda pages: pages * 256),
)
def test_a_guest_is_refused_exactly_when_it_is_outside_what_the_sentence_calls_possible(
    cpu_kind: str, cpus: int, memory_mb: int
) -> None:
    low, high = (256, 2048) if cpu_kind == "shared" else (2048, 8192)
    counts = {1, 2, 4, 6, 8} | ({10, 12, 14, 16} if cpu_kind == "performance" else set())
    possible = cpus in counts and low * cpus <= memory_mb <= high * cpus
    assert (conf.guest_problem(cpu_kind, cpus, memory_mb) is None) == possible


def test_policies_are_read_again_after_a_test_changed_settings(settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": "machinequeue.MachineBackend", "QUEUES": {"odd": {"timeout": 7}}}}
    assert conf.policy("default", "odd").timeout == 7


def test_a_queue_that_settings_no_longer_name_gets_the_options(settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": "machinequeue.MachineBackend", "OPTIONS": {"idle_timeout": 9}}}
    assert conf.policy("default", "dropped").idle_timeout == 9


def test_an_unknown_backend_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'default'"):
        conf.policies("defaul")


def test_the_state_folder_is_made_and_keeps_itself_out_of_git(settings: Any, tmp_path: Any) -> None:
    settings.MACHINEQUEUE = {"STATE_DIR": str(tmp_path / "state")}
    folder = conf.state_dir()
    assert folder == tmp_path / "state"
    assert (folder / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["manage.py", "mq_run", "mq-1"], True), (["manage.py", "runserver"], False), (["manage.py"], False)],
)
def test_the_runner_is_known_by_its_command(argv: list[str], expected: bool) -> None:
    assert conf.is_runner_command(argv) is expected
