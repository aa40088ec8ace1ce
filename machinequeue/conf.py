"""Settings, declared once: name, type, default, unit, environment variable and a sentence each.

Three tables: `Settings` (the MACHINEQUEUE dict and the environment, for the whole process), `Policy`
(a queue's dict in TASKS[alias]["QUEUES"], over the defaults in TASKS[alias]["OPTIONS"]) and `guest_problem`
(the machine sizes that Fly sells). Reading never raises: it returns what was wrong as sentences, which
`checks` shows; `settings()` and `policy()` raise ConfigurationError with the same sentences.
"""

import dataclasses
import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from machinequeue.errors import ConfigurationError

PUBLIC_API = "https://api.machines.dev"
EMULATOR_API = "http://127.0.0.1:4280"
EMULATOR_IMAGE = "local"
EMULATOR_TOKEN = "local"  # noqa: S105 - the emulator's well-known token, good on loopback only
GRACE_SECONDS = 30
"""How long a task is given to end by itself after a timeout, a cancel or SIGTERM, in seconds."""


def option(
    default: Any,
    sentence: str,
    *,
    env: str = "",
    minimum: float | None = None,
    choices: Iterable[str] = (),
    secret: bool = False,
) -> Any:
    """A declared setting. `secret` keeps it out of repr."""
    meta = {"help": sentence, "env": env, "minimum": minimum, "choices": tuple(choices)}
    factory = {"default_factory": default.copy} if isinstance(default, dict | list) else {"default": default}
    return field(metadata=MappingProxyType(meta), repr=not secret, **factory)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The MACHINEQUEUE dict: upper-case keys of these names. The environment fills what the dict leaves out."""

    app: str = option("", "Fly app whose machines run the tasks.", env="FLY_APP_NAME")
    api_token: str = option(
        "", "Token for the Machines API; a deploy token of the app.", env="FLY_API_TOKEN", secret=True
    )
    api_url: str = option("", "Base address of the Machines API.", env="FLY_API_HOSTNAME")
    image: str = option("", "Image that task machines run.", env="FLY_IMAGE_REF")
    redis_url: str = option("", "Redis for wake-ups; empty: a SQLite file.", env="REDIS_URL", secret=True)
    state_dir: str = option("", "Folder for the wake-ups file and the emulator's state.", env="MACHINEQUEUE_STATE_DIR")
    command: list[str] = option(["python", "manage.py", "mq_run"], "Command of a task machine; its name is appended.")
    env: dict[str, str] = option({}, "Environment variables of task machines, over those of the dispatcher's machine.")
    process_group: str = option("machinequeue", "fly_process_group of task machines; must not be one of fly.toml.")
    max_machines: int = option(20, "Machines at once, over all queues.", minimum=1)
    heartbeat_seconds: float = option(10.0, "Seconds between heartbeats of a running attempt.", minimum=0.1)
    lease_seconds: float = option(45.0, "Seconds that a claim holds without a heartbeat.", minimum=0.3)
    boot_timeout: float = option(600.0, "Seconds from create to check-in after which a machine is given up.", minimum=1)
    output_bytes: int = option(262_144, "Bytes of output kept per attempt, the newest.", minimum=1_024)
    workers: int = option(4, "Threads of a dispatcher that answer wake-ups.", minimum=1)
    allow_wait_in_task: bool = option(False, "Let a task wait for another run's result.")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A queue's policy, and what its tasks get when they say nothing."""

    memory_mb: int = option(512, "Memory of a machine, in MB.", minimum=256)
    cpus: int = option(1, "Virtual CPUs of a machine.", minimum=1)
    cpu_kind: str = option("shared", "Kind of CPU.", choices=("shared", "performance"))
    regions: list[str] = option([], "Regions to try, in order; empty: near the dispatcher.")
    max_machines: int = option(10, "Machines of this queue at once.", minimum=1)
    idle_timeout: float = option(0.0, "Seconds that a machine waits for more work before it exits.", minimum=0)
    machine_life: float = option(3600.0, "Longest life of a machine, in seconds.", minimum=10)
    timeout: float = option(600.0, "Longest time of a run, in seconds.", minimum=0.1)
    max_attempts: int = option(1, "Attempts of a run whose task raises.", minimum=1)
    isolation: str = option(
        "process",
        "What executes a run: a machine of its own, a process of its own, or a process shared with other runs.",
        choices=("machine", "process", "shared"),
    )


TASK_OPTIONS = ("memory_mb", "cpus", "cpu_kind", "regions", "timeout", "max_attempts", "isolation")
"""The keys of Policy that a task may set for itself."""

SPEC_KEYS = ("memory_mb", "cpus", "cpu_kind", "regions", "isolation")
"""The keys of Policy that decide which machines may execute a run."""


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' or ' Known: …'."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def _fits(value: Any, wanted: Any) -> bool:
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is list:
        return isinstance(value, list | tuple) and all(_fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if wanted is bool:
        return isinstance(value, bool)
    if wanted in (int, float):
        return isinstance(value, int if wanted is int else int | float) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _name_of(wanted: Any) -> str:
    return str(wanted) if get_origin(wanted) else wanted.__name__


def value_problem(table: type, name: str, value: Any) -> str | None:
    """What is wrong with this value of an option of the table, or None. Never quotes a secret."""
    declared = table.__dataclass_fields__[name]  # type: ignore[attr-defined]
    wanted, meta = get_type_hints(table)[name], declared.metadata
    shown = repr(value) if declared.repr else "the value"
    if not _fits(value, wanted):
        return f"must be {_name_of(wanted)}, not {shown} ({type(value).__name__})"
    if meta["minimum"] is not None and value < meta["minimum"]:
        return f"must be at least {meta['minimum']:g}, not {shown}"
    if meta["choices"] and value not in meta["choices"]:
        return f"must be one of {', '.join(meta['choices'])}, not {shown}"
    return None


def _read(
    table: type, values: Mapping[str, Any], where: str, *, upper: bool = False
) -> tuple[dict[str, Any], list[str]]:
    spelled = {(f.name.upper() if upper else f.name): f for f in dataclasses.fields(table)}
    good: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in values.items():
        if key not in spelled:
            problems.append(f"{where} has no setting {key!r}.{suggest(str(key), spelled)}")
        elif problem := value_problem(table, spelled[key].name, value):
            problems.append(f"{where}[{key!r}] {problem}.")
        else:
            good[spelled[key].name] = list(value) if isinstance(value, tuple) else value
    return good, problems


def read_settings(values: object, environ: Mapping[str, str], *, debug: bool) -> tuple[Settings, list[str]]:
    """The process-wide settings from the dict, then the environment, then (with DEBUG and no token) the emulator."""
    if not isinstance(values, Mapping):
        return Settings(), [f"MACHINEQUEUE must be a dict, not {type(values).__name__}."]
    good, problems = _read(Settings, values, "MACHINEQUEUE", upper=True)
    for declared in dataclasses.fields(Settings):
        variable = declared.metadata["env"]
        if variable and declared.name not in good and environ.get(variable):
            good[declared.name] = environ[variable]
    if debug and not good.get("api_token"):
        local = {"app": "local", "api_token": EMULATOR_TOKEN, "api_url": EMULATOR_API, "image": EMULATOR_IMAGE}
        good = {**local, **{key: value for key, value in good.items() if value}}
    good["api_url"] = _address(good.get("api_url") or PUBLIC_API)
    read = Settings(**good)
    if read.lease_seconds < 3 * read.heartbeat_seconds:
        problems.append(
            f"MACHINEQUEUE['LEASE_SECONDS'] ({read.lease_seconds:g}) must be at least three times "
            f"HEARTBEAT_SECONDS ({read.heartbeat_seconds:g}): one late heartbeat must not cost a run its claim."
        )
    return read, problems


def _address(text: str) -> str:
    return text.rstrip("/") if "://" in text else f"https://{text.rstrip('/')}"


def read_policies(params: Mapping[str, Any], where: str) -> tuple[dict[str, Policy], list[str]]:
    """The policy of each queue of one TASKS entry, by name."""
    defaults, problems = _read(Policy, params.get("OPTIONS") or {}, f"{where}['OPTIONS']")
    queues = params.get("QUEUES", ["default"])
    if not isinstance(queues, Mapping):
        queues = {name: {} for name in queues}
    policies: dict[str, Policy] = {}
    for name, values in queues.items():
        place = f"{where}['QUEUES'][{name!r}]"
        if not isinstance(values, Mapping):
            problems.append(f"{place} must be a dict, not {type(values).__name__}.")
        own, more = _read(Policy, values if isinstance(values, Mapping) else {}, place)
        policies[name] = policy = Policy(**{**defaults, **own})
        problems += more + [f"{place}: {sentence}" for sentence in policy_problems(policy)]
    return policies, problems


def policy_problems(policy: Policy) -> list[str]:
    """Contradictions between the values of a policy."""
    problems = []
    if policy.timeout + GRACE_SECONDS > policy.machine_life:
        problems.append(
            f"timeout {policy.timeout:g} s and {GRACE_SECONDS} s of grace are longer than machine_life "
            f"{policy.machine_life:g} s: no machine could finish such a run. Raise machine_life or lower timeout."
        )
    if guest := guest_problem(policy.cpu_kind, policy.cpus, policy.memory_mb):
        problems.append(guest)
    return problems


def guest_problem(cpu_kind: str, cpus: int, memory_mb: int) -> str | None:
    """Why Fly would refuse this size, or None. Ranges from Fly's machine sizing guide."""
    counts, low, high = {
        "shared": ((1, 2, 4, 6, 8), 256, 2048),
        "performance": ((1, 2, 4, 6, 8, 10, 12, 14, 16), 2048, 8192),
    }[cpu_kind]
    if cpus not in counts:
        return f"cpus={cpus} is no size of cpu_kind {cpu_kind!r}. Possible: {', '.join(map(str, counts))}."
    if not low * cpus <= memory_mb <= high * cpus or memory_mb % 256:
        return (
            f"memory_mb={memory_mb} does not go with {cpus} {cpu_kind} CPU{'s' * (cpus > 1)}. "
            f"Possible: {low * cpus} to {high * cpus} in steps of 256."
        )
    return None


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigurationError(" ".join(problems))


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process. Raises ConfigurationError."""
    read, problems = read_settings(
        getattr(django_settings, "MACHINEQUEUE", {}), os.environ, debug=django_settings.DEBUG
    )
    _raise(problems)
    return read


@lru_cache(maxsize=16)
def policies(alias: str) -> dict[str, Policy]:
    """The queues of TASKS[alias] with their policies. Raises ConfigurationError."""
    params = getattr(django_settings, "TASKS", {}).get(alias)
    if params is None:
        known = getattr(django_settings, "TASKS", {})
        raise ConfigurationError(f"TASKS has no backend {alias!r}.{suggest(alias, known)}")
    read, problems = read_policies(params, f"TASKS[{alias!r}]")
    _raise(problems)
    return read


def policy(alias: str, queue: str) -> Policy:
    """The policy of a queue; of a queue that settings no longer name, the backend's defaults."""
    known = policies(alias)
    if queue in known:
        return known[queue]
    options = getattr(django_settings, "TASKS", {})[alias].get("OPTIONS") or {}
    return Policy(**_read(Policy, options, "OPTIONS")[0])


def state_dir() -> Path:
    """The folder for local state, made when missing and ignored by git."""
    root = Path(getattr(django_settings, "BASE_DIR", ".")).resolve()
    folder = Path(settings().state_dir) if settings().state_dir else root / ".machinequeue"
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return folder


def in_machine() -> bool:
    """Whether this process executes tasks inside a machine."""
    return bool(os.environ.get("MACHINEQUEUE_MACHINE"))


def is_runner_command(argv: list[str] | None = None) -> bool:
    """Whether this process was started as `manage.py mq_run …`."""
    return (argv or sys.argv)[1:2] == ["mq_run"]


def forget(*, setting: str, **kwargs: Any) -> None:
    """Read again after a test changed settings."""
    if setting in ("MACHINEQUEUE", "TASKS", "DEBUG"):
        settings.cache_clear()
        policies.cache_clear()


setting_changed.connect(forget)
