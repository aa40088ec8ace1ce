"""Read a machine config: refuse what Fly refuses, in its words, and say what a boot needs."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from machinequeue.machines.emulator.answers import bad_request, not_emulated
from machinequeue.machines.emulator.shapes import shaped
from machinequeue.machines.schema import Guest

STOP_SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM")
SIGNALS = (*STOP_SIGNALS, "SIGABRT", "SIGALRM", "SIGFPE", "SIGILL", "SIGPIPE", "SIGSEGV", "SIGTRAP")
POLICIES = ("no", "on-failure", "always")
DEFAULT_RETRIES = 10
DEFAULT_STOP = ("SIGINT", 5.0)
LONGEST_STOP_SECONDS = 300.0
NOT_EMULATED = ("containers", "mounts", "schedule", "standbys")

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_PRESET = re.compile(r"(shared-cpu|performance)-(\d+)x")

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a create or an update call wants its machine booted, if at all."""

    boot: bool = True
    skip_secrets: bool = False
    min_secrets_version: int = 0
    cordoned: bool = False


def seconds(value: object, field: str) -> float:
    """A Go duration ("30s", "1m30s") or a number of nanoseconds, as seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value / 1e9
    if isinstance(value, str) and value and not _DURATION_PART.sub("", value):
        return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value))
    raise bad_request(f"{field}: time: invalid duration {value!r}")


def signal_number(name: object, allowed: tuple[str, ...], field: str) -> int:
    """The number of a signal that is allowed here."""
    if name not in allowed:
        raise bad_request(f"{field}: {name!r} is not one of: {', '.join(allowed)}")
    return int(signal.Signals[str(name)])


def checked(config: object) -> dict[str, Any]:
    """The config, when a machine can be made of it. Raises a Refusal otherwise."""
    if not isinstance(config, Mapping):
        raise bad_request("config is required")
    config = shaped(config)
    if not config.get("image"):
        raise bad_request("config.image is required")
    for field in NOT_EMULATED:
        if config.get(field):
            raise not_emulated(f"config.{field}")
    for field in ("env", "metadata"):
        _check_strings(config.get(field), f"config.{field}")
    problem = guest_of(config).problem()
    if problem:
        raise bad_request(problem)
    _check_restart(config)
    for number, process in enumerate(processes_of(config)):
        _check_process(process, f"config.processes[{number}]")
        command_of(config, process, f"processes[{number}]")
    stop_of(config, {})
    _check_services(config)
    return config


def launch_of(body: Config) -> Launch:
    """How the machine of a create or an update call shall boot."""
    least = body.get("min_secrets_version") or 0
    if not isinstance(least, int) or isinstance(least, bool) or least < 0:
        raise bad_request("min_secrets_version must be a whole number")
    skip = {name: bool(body.get(f"skip_{name}")) for name in ("launch", "secrets", "service_registration")}
    return Launch(not skip["launch"], skip["secrets"], least, skip["service_registration"])


def _check_strings(value: object, field: str) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value.values()):
        raise bad_request(f"{field} must be a map of strings")
    if any("\0" in text for pair in value.items() for text in pair) or any(not key or "=" in key for key in value):
        raise bad_request(f"{field} must have names without '=' and no NUL")


def _check_restart(config: Config) -> None:
    policy, retries = restart_of(config)
    if policy not in POLICIES:
        raise bad_request(f"config.restart.policy {policy!r} is not one of: {', '.join(POLICIES)}")
    if not isinstance(retries, int) or retries < 0:
        raise bad_request("config.restart.max_retries must be a whole number")


def _check_process(process: Config, name: str) -> None:
    _check_strings(process.get("env"), f"{name}.env")
    secrets = process.get("secrets") or []
    if not isinstance(secrets, list) or not all(map(_is_secret, secrets)):
        raise bad_request(f"{name}.secrets must be a list of objects with env_var")
    if process.get("env_from"):
        raise not_emulated(f"{name}.env_from")


def _check_services(config: Config) -> None:
    objects(config, "services")


def _is_secret(entry: object) -> bool:
    if not isinstance(entry, Mapping) or not entry.get("env_var"):
        return False
    return isinstance(entry["env_var"], str) and isinstance(entry.get("name") or "", str)


def guest_of(config: Config) -> Guest:
    """The size asked for, by fields or by preset."""
    guest = _section(config, "guest")
    size = guest.get("size") or config.get("size")
    if not size:
        _check_guest_types(guest)
        return Guest.parse(guest)
    found = _PRESET.fullmatch(str(size))
    if not found:
        raise bad_request(f"invalid machine size {size!r}")
    kind = "shared" if found[1] == "shared-cpu" else found[1]
    return Guest.parse({"cpu_kind": kind, "cpus": int(found[2]), "memory_mb": guest.get("memory_mb")})


def _check_guest_types(guest: Config) -> None:
    if not isinstance(guest.get("cpu_kind") or "", str):
        raise bad_request("config.guest.cpu_kind must be a string")
    for field in ("cpus", "memory_mb"):
        value = guest.get(field)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise bad_request(f"config.guest.{field} must be a whole number")


def restart_of(config: Config) -> tuple[Any, Any]:
    """Policy and the number of retries; Fly's default is on-failure, ten times."""
    restart = _section(config, "restart")
    retries = restart.get("max_retries")
    return restart.get("policy") or "on-failure", DEFAULT_RETRIES if retries is None else retries


def stop_of(config: Config, asked: Config) -> tuple[int, float]:
    """Signal number and seconds of grace: as asked in the call, else in the config, else SIGINT and 5 s."""
    stop = _section(config, "stop_config")
    name = asked.get("signal") or stop.get("signal") or DEFAULT_STOP[0]
    timeout = asked.get("timeout") or stop.get("timeout")
    grace = DEFAULT_STOP[1] if timeout is None else seconds(timeout, "timeout")
    return signal_number(name, STOP_SIGNALS, "signal"), min(grace, LONGEST_STOP_SECONDS)


def processes_of(config: Config) -> list[Config]:
    """The processes of the config, one without properties when it describes none."""
    return objects(config, "processes") or [{}]


def command_of(config: Config, process: Config, process_name: str = "processes[]") -> list[str]:
    """The command line: `exec` alone, or `entrypoint` and `cmd` together; of the process, else of `init`."""
    for section, name in ((process, process_name), (_section(config, "init"), "init")):
        whole = _words(section, "exec", name)
        command = whole or [*_words(section, "entrypoint", name), *_words(section, "cmd", name)]
        if command:
            return command
    raise bad_request("config.init: a command is required, an emulated image has none of its own")


def _words(section: Config, field: str, name: str) -> list[str]:
    words = section.get(field)
    if words is None:
        return []
    if not isinstance(words, list) or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise bad_request(f"config.{name}.{field} must be a list of strings")
    return words


def environment_of(config: Config, process: Config, secrets: Mapping[str, str]) -> dict[str, str]:
    """The app's secrets as far as this process may have them, then `env` of the config, then of the process."""
    wanted = dict(secrets)
    if process.get("ignore_app_secrets"):
        wanted = {}
    for each in process.get("secrets") or ():
        name = each.get("name") or each["env_var"]
        if name in secrets:
            wanted[each["env_var"]] = secrets[name]
    return {**wanted, **(config.get("env") or {}), **(process.get("env") or {})}


def _section(config: Config, name: str) -> Config:
    section = config.get(name)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise bad_request(f"config.{name} must be an object")
    return section


def objects(config: Config, name: str) -> list[Config]:
    """A property that is a list of objects, none when it is absent."""
    found = config.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise bad_request(f"config.{name} must be a list of objects")
    return found
