"""Settings, declared once: name, type, default, unit, environment variable and a sentence each.

Three tables: `Settings` (the MACHINEQUEUE dict and the environment, for the whole process), `Policy`
(a queue's dict in TASKS[alias]["QUEUES"], over the defaults in TASKS[alias]["OPTIONS"]) and `guest_problem`
(the machine sizes that Fly sells). Reading never raises: it returns what was wrong as sentences, which
`checks` shows; `settings()` and `policy()` raise ConfigurationError with the same sentences.
"""

import dataclasses
import difflib
import hashlib
import ipaddress
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from machinequeue.errors import ConfigurationError

PUBLIC_API = "https://api.machines.dev"
TOKENS = frozenset({"FLY_API_TOKEN", "MACHINEQUEUE_CONTAINER_TOKEN"})
"""Variables that only dispatchers need: no machine that they launch gets one."""
EMULATOR_API = "http://127.0.0.1:4280"
EMULATOR_IMAGE = "local"
EMULATOR_TOKEN = "local"  # noqa: S105 - the emulator's well-known token, good on loopback only
BACKEND = "machinequeue.MachineBackend"
BACKENDS = (BACKEND, "machinequeue.backend.MachineBackend", "machinequeue.backend.engine.MachineBackend")
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
    example: str = "",
) -> Any:
    """A declared setting. `secret` keeps it out of repr; `example` says what it must be better than its type."""
    meta = {"help": sentence, "env": env, "minimum": minimum, "choices": tuple(choices), "example": example}
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
    boot_timeout: float = option(
        600.0, "Seconds from the create call until Fly says `started`, after which a machine is given up.", minimum=1
    )
    check_in_timeout: float = option(
        120.0,
        "Seconds from `started` to check-in; doubled after each failure, at most fourfold.",
        minimum=1,
    )
    silent_seconds: float = option(
        300.0, "Seconds past its claim lease after which a running machine that stays silent is destroyed.", minimum=1
    )
    cancel_seconds: float = option(
        60.0, "Seconds after which a machine that does not answer a cancel is destroyed.", minimum=1
    )
    leaked_seconds: float = option(
        60.0, "Age from which a machine of ours without a row, or whose row is gone, is destroyed.", minimum=0
    )
    wait_for_migrations: bool = option(False, "Launch nothing while the dispatcher's image has unapplied migrations.")
    database_connections: int = option(
        0, "Database connections that machines may use in all, three each; 0: no such limit.", minimum=0
    )
    output_bytes: int = option(262_144, "Bytes of output kept per attempt, the newest.", minimum=1_024)
    workers: int = option(4, "Threads of a dispatcher that answer wake-ups.", minimum=1)
    api_rate: float = option(
        1.0,
        "Creates, and lists, that all dispatchers together ask of the app per second; 0: as many as they like. "
        "Left out, it is 0 for an API on loopback.",
        minimum=0,
    )
    allow_wait_in_task: bool = option(False, "Let a task wait for another run's result.")
    backup_schedule: str = option("0 3 * * *", "When machinequeue.contrib.backups makes a backup; empty: never.")
    backup_timezone: str = option("", "Time zone of BACKUP_SCHEDULE; empty: TIME_ZONE.")
    backup_databases: list[str] = option(["default"], "Aliases of the databases that are backed up.")
    backup_media: bool = option(False, "Back up the files of the default storage too.")
    backup_encrypt: bool = option(False, "Encrypt backups with GPG for DBBACKUP_GPG_RECIPIENT.")
    backup_daily: int = option(7, "Days of which the newest backup is kept.", minimum=0)
    backup_weekly: int = option(4, "Weeks of which the newest backup is kept.", minimum=0)
    backup_monthly: int = option(6, "Months of which the newest backup is kept.", minimum=0)
    backup_drill: bool = option(True, "Restore each backup on a second machine, to prove it.")
    backup_queue: str = option("default", "Queue of the backup and of the restore drill.")
    backup_memory_mb: int = option(1024, "Memory of the machines of backup and drill, in MB.", minimum=256)
    backup_timeout: float = option(3000.0, "Longest time of a backup, and of a drill, in seconds.", minimum=1)
    drill_database_url: str = option(
        "",
        "PostgreSQL that a drill restores into, never the one backed up; empty: a server started for the drill.",
        env="DRILL_DATABASE_URL",
        secret=True,
    )

    health_token: str = option(
        "", "Who sends it may read /ht/ and /ht/metrics; empty: only staff may.", env="HEALTH_TOKEN", secret=True
    )
    command_output_bytes: int = option(
        16_777_216, "Bytes of a command's stdout, and of its stderr, kept exactly for who follows it.", minimum=1_024
    )
    keep_successful_days: float = option(14.0, "Days for which successful runs are kept; 0: for ever.", minimum=0)
    keep_failed_days: float = option(
        90.0, "Days for which failed, cancelled and expired runs are kept; 0: for ever.", minimum=0
    )
    keep_machines_days: float = option(
        30.0, "Days for which machines that are gone, and that no kept run refers to, are kept; 0: for ever.", minimum=0
    )
    withhold_secrets: list[str] = option(
        [], "Secrets of the app that task machines do not get, but serverless ones do; tokens no machine gets."
    )
    container_app: str = option(
        "",
        "Fly app whose machines run code that is not ours; empty: the name of the app with -sandbox after it.",
        env="MACHINEQUEUE_CONTAINER_APP",
    )
    container_token: str = option(
        "", "Deploy token of that app; empty: API_TOKEN.", env="MACHINEQUEUE_CONTAINER_TOKEN", secret=True
    )
    container_threads: int = option(4, "Container runs that a dispatcher looks after at once.", minimum=1)
    container_output: int = option(
        65_536,
        "Characters of stdout, and of stderr, kept of a container run; what is cut out is the middle.",
        minimum=1_000,
    )

    serverless_views: list[tuple[str, list[str]]] = option(
        [],
        "Views that a serverless machine answers, each with the methods: `(name, [method, ...])`.",
        example="a list such as [('reports:show', ['GET'])]",
    )
    serverless_command: list[str] = option(
        ["python", "-m", "gunicorn", "--bind", "{bind}", "--workers", "1", "--threads", "8", "{wsgi}"],
        "Server of a serverless machine; `{bind}`, `{host}`, `{port}`, `{wsgi}` and `{asgi}` are filled in.",
    )
    serverless_port: int = option(8080, "Port on which that server listens.", minimum=1)
    serverless_memory_mb: int = option(
        1024, "Memory of a serverless machine whose view asks for none, MB.", minimum=256
    )
    serverless_cpus: int = option(1, "Virtual CPUs of a serverless machine.", minimum=1)
    serverless_cpu_kind: str = option("shared", "Kind of CPU of it.", choices=("shared", "performance"))
    serverless_regions: list[str] = option([], "Regions of it to try, in order; empty: near the dispatcher.")
    serverless_timeout: float = option(
        10.0, "Seconds for which Fly tries to hand a request over, before it is answered in place.", minimum=0.1
    )
    serverless_keep: float = option(
        86_400.0, "Seconds without a request for its views after which a serverless machine is destroyed.", minimum=1
    )
    serverless_drain: float = option(
        45.0, "Seconds for which a serverless machine that was replaced goes on answering.", minimum=0
    )
    serverless_in_place: list[str] = option(["/ht/"], "Beginnings of paths that are answered wherever they arrive.")
    idle_shutdown: float = option(
        0.0, "Seconds without a request after which a server that `idle_shutdown` wraps ends; 0: never.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A queue's policy, and what its tasks get when they say nothing."""

    memory_mb: int = option(512, "Memory of a machine, in MB.", minimum=256)
    max_memory_mb: int = option(
        0, "Largest memory that a run gets after it ran out of memory; 0: twice memory_mb.", minimum=0
    )
    cpus: int = option(1, "Virtual CPUs of a machine.", minimum=1)
    cpu_kind: str = option("shared", "Kind of CPU.", choices=("shared", "performance"))
    regions: list[str] = option([], "Regions to try, in order; empty: near the dispatcher.")
    max_machines: int = option(10, "Machines of this queue at once.", minimum=1)
    min_machines: int = option(0, "Machines of this queue that are kept waiting, replaced as they age.", minimum=0)
    idle_timeout: float = option(0.0, "Seconds that a machine waits for more work before it exits.", minimum=0)
    machine_life: float = option(3600.0, "Longest life of a machine, in seconds.", minimum=10)
    timeout: float = option(600.0, "Longest time of a run, in seconds.", minimum=0.1)
    max_attempts: int = option(1, "Attempts of a run whose task raises.", minimum=1)
    isolation: str = option(
        "process",
        "What executes a run: a machine of its own, a process of its own, or a process shared with other runs.",
        choices=("machine", "process", "shared"),
    )
    image: str = option(
        "current",
        "Image that executes a run: that of the newest release, or the same as where it was enqueued.",
        choices=("current", "same"),
    )


TASK_OPTIONS = (
    "memory_mb",
    "max_memory_mb",
    "cpus",
    "cpu_kind",
    "regions",
    "timeout",
    "max_attempts",
    "isolation",
    "image",
)
"""The keys of Policy that a task may set for itself."""

SPEC_KEYS = ("memory_mb", "cpus", "cpu_kind", "regions", "isolation")
"""The keys of Policy that decide which machines may execute a run."""

CONNECTIONS_PER_MACHINE = 3
"""The supervisor's, its scribe's, and that of the process that executes a run."""
MEMORY_STEP = 256


def spec_of(policy: "Policy", image: str) -> dict[str, Any]:
    """What runs of this policy ask of their machine. `image` is that of this process, for runs pinned to it."""
    spec = {name: getattr(policy, name) for name in SPEC_KEYS}
    if policy.image == "same" and image:
        spec["image"] = image
    counts, _, high = GUESTS[policy.cpu_kind]
    most = min(policy.max_memory_mb or 2 * policy.memory_mb, counts[-1] * high)
    return {**spec, "max_memory_mb": most // MEMORY_STEP * MEMORY_STEP}


def spec_key(spec: Mapping[str, Any]) -> str:
    """The hash of a spec: runs of the same key may share a machine. The bound of its growth does not count."""
    counted = {name: spec[name] for name in (*SPEC_KEYS, "image", "container") if name in spec}
    text = json.dumps(dict(sorted(counted.items())), separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bigger(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """The spec with twice the memory, or the most that it allows; None when it has that already.

    More CPUs where Fly sells that memory only with them.
    """
    most = spec.get("max_memory_mb") or spec["memory_mb"]
    memory = min(2 * spec["memory_mb"], most) // MEMORY_STEP * MEMORY_STEP
    counts, low, high = GUESTS[spec["cpu_kind"]]
    for cpus in counts:
        if cpus >= spec["cpus"] and spec["memory_mb"] < memory and low * cpus <= memory <= high * cpus:
            return {**spec, "cpus": cpus, "memory_mb": memory}
    return None


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
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(args) and all(map(_fits, value, args))
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
        return f"must be {meta['example'] or _name_of(wanted)}, not {shown} ({type(value).__name__})"
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
    if _is_loopback(good["api_url"]):
        good.setdefault("api_rate", 0.0)
    read = Settings(**good)
    if problem := _address_problem(read.api_url):
        problems.append(f"MACHINEQUEUE['API_URL'] (or FLY_API_HOSTNAME) {problem}.")
    if read.lease_seconds < 3 * read.heartbeat_seconds:
        problems.append(
            f"MACHINEQUEUE['LEASE_SECONDS'] ({read.lease_seconds:g}) must be at least three times "
            f"HEARTBEAT_SECONDS ({read.heartbeat_seconds:g}): one late heartbeat must not cost a run its claim."
        )
    if guest := guest_problem(read.serverless_cpu_kind, read.serverless_cpus, read.serverless_memory_mb):
        problems.append(f"MACHINEQUEUE, serverless machines: {guest}")
    return read, problems


def _address(text: str) -> str:
    if "://" not in text:
        plain = text.startswith("_api.internal") or _is_loopback(f"//{text}")
        text = f"{'http' if plain else 'https'}://{text}"
    return text.rstrip("/")


def _is_loopback(address: str) -> bool:
    """Whether it means this computer: localhost, 127.0.0.0/8 or ::1."""
    try:
        host = urlsplit(address).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or no address at all
        return False


def _address_problem(address: str) -> str:
    try:
        _ = urlsplit(address).port
    except ValueError:
        return f"is no address, as {PUBLIC_API} and {EMULATOR_API} are: {address!r}"
    return ""


def read_policies(params: Mapping[str, Any], where: str) -> tuple[dict[str, Policy], list[str]]:
    """The policy of each queue of one TASKS entry, by name."""
    options = params.get("OPTIONS") or {}
    if not isinstance(options, Mapping):
        return {}, [f"{where}['OPTIONS'] must be a dict, not {type(options).__name__}."]
    defaults, problems = _read(Policy, options, f"{where}['OPTIONS']")
    queues = params.get("QUEUES", ["default"])
    if isinstance(queues, str) or not isinstance(queues, Iterable):
        return {}, [*problems, f"{where}['QUEUES'] must be a list of names or a dict of dicts, not {queues!r:.80}."]
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
    if 0 < policy.max_memory_mb < policy.memory_mb:
        problems.append(f"max_memory_mb {policy.max_memory_mb} is less than memory_mb {policy.memory_mb}.")
    if policy.min_machines > policy.max_machines:
        problems.append(f"min_machines {policy.min_machines} is more than max_machines {policy.max_machines}.")
    return problems


GUESTS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "shared": ((1, 2, 4, 6, 8), 256, 2048),
    "performance": ((1, 2, 4, 6, 8, 10, 12, 14, 16), 2048, 8192),
}
"""What Fly sells: numbers of CPUs, and the least and the most MB for each of them. From Fly's machine sizing guide."""


def guest_problem(cpu_kind: str, cpus: int, memory_mb: int) -> str | None:
    """Why Fly would refuse this size, or None."""
    counts, low, high = GUESTS[cpu_kind]
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


def need(*names: str) -> Settings:
    """The settings of this process, of which these must be set. Raises ConfigurationError."""
    read = settings()
    missing = [name for name in names if not getattr(read, name)]
    if missing:
        variables = {name: Settings.__dataclass_fields__[name].metadata["env"] for name in missing}
        listed = ", ".join(f"{variables[name]} (or MACHINEQUEUE[{name.upper()!r}])" for name in missing)
        raise ConfigurationError(
            f"Not set: {listed}. On Fly, FLY_APP_NAME and FLY_IMAGE_REF are there by themselves; the token is a secret "
            "made with `fly tokens create deploy`. For development set DEBUG and run manage.py mq_dev."
        )
    return read


def container_app(read: Settings) -> str:
    """The app of the machines that run code that is not ours."""
    return read.container_app or f"{read.app}-sandbox"


def need_local_api(command: str, does: str) -> Settings:
    """The settings of this process, whose Machines API must be on this computer. Raises ConfigurationError."""
    read = settings()
    if not (read.api_url.startswith("http://") and _is_loopback(read.api_url)):
        raise ConfigurationError(
            f"The Machines API is set to {read.api_url}; {command} {does}. Unset FLY_API_TOKEN "
            f"and FLY_API_HOSTNAME (with DEBUG on), or set FLY_API_HOSTNAME={EMULATOR_API}."
        )
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


def most_machines(read: Settings) -> int:
    """Machines at once over all queues: `max_machines`, and what the database has connections for."""
    if not read.database_connections:
        return read.max_machines
    return min(read.max_machines, read.database_connections // CONNECTIONS_PER_MACHINE)


def kept_queues() -> list[tuple[str, str, Policy]]:
    """(backend alias, queue, policy) of the queues that keep machines waiting."""
    ours = [alias for alias, params in getattr(django_settings, "TASKS", {}).items() if is_ours(params)]
    return [(alias, name, kept) for alias in ours for name, kept in policies(alias).items() if kept.min_machines]


def backup_lane(read: Settings) -> dict[str, Any]:
    """The options of the tasks of backups: their backend, queue, size and timeout, as far as settings allow them."""
    known = getattr(django_settings, "TASKS", {})
    alias = next((alias for alias, params in known.items() if is_ours(params)), "default")
    queues = read_policies(known.get(alias, {}), "")[0] or {"default": Policy()}
    queue = read.backup_queue if read.backup_queue in queues else next(iter(queues))
    counts, _, most = GUESTS["shared"]
    memory = min(read.backup_memory_mb // MEMORY_STEP * MEMORY_STEP, counts[-1] * most)
    return {
        "backend": alias,
        "queue_name": queue,
        "cpu_kind": "shared",
        "cpus": next(count for count in counts if memory <= count * most),
        "memory_mb": max(memory, MEMORY_STEP * next(count for count in counts if memory <= count * most)),
        "timeout": min(read.backup_timeout, queues[queue].machine_life - GRACE_SECONDS),
    }


def is_ours(params: Mapping[str, Any]) -> bool:
    """Whether an entry of TASKS uses our backend."""
    return params.get("BACKEND") in BACKENDS


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
