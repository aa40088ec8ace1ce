"""Fly: the app, the token, the image, regions, and whether the app's machines are alike.

Of environment variables only names are ever shown; values are compared by their hash.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from machinequeue import conf
from machinequeue.dispatch.launch import CONTAINER, site
from machinequeue.doctor.facts import Facts
from machinequeue.doctor.findings import Blocked, Finding, Status, failure, fine, skipped, warning
from machinequeue.lifecycle import CircuitKind
from machinequeue.machines.errors import (
    MachinesError,
    NoCapacity,
    NotFound,
    QuotaReached,
    RateLimited,
    Rejected,
    Unauthorized,
    Unreachable,
)
from machinequeue.machines.schema import Guest, Machine, TokenInfo
from machinequeue.records import circuits, dispatchers, machines

PERSONAL_PREFIX = "fo1_"
PLACEMENTS = 6
"""So many sizes are asked about; three at once, then one a second, as often as Fly likes."""
PLACEMENT_PAUSE = 1.1
SHOWN = 5
HEARD = ("SIGTERM", "SIGINT")
"""Signals at which a runner hands its run back."""
OWN_VARIABLES = conf.TOKENS | {"FLY_PROCESS_GROUP", "PRIMARY_REGION", "MACHINEQUEUE_MACHINE", "RELEASE_COMMAND"}
"""Those in which machines differ on purpose."""


# --- app and token ----------------------------------------------------------------------------------------------------


def app(facts: Facts) -> Iterator[Finding]:
    """Does the Machines API answer, and does the token open this app?"""
    read = facts.settings()
    began = time.perf_counter()
    try:
        facts.app(own=True)
    except NotFound as error:
        yield failure(
            f"There is no app {read.app} at {read.api_url} ({_said(error)}).",
            "Check FLY_APP_NAME, or create the app: fly apps create. The name is `app` in fly.toml.",
        )
    except Unauthorized as error:
        yield failure(f"The token does not open app {read.app} ({_said(error)}).", RENEW)
    except Unreachable as error:
        yield failure(f"The Machines API at {read.api_url} does not answer: {error.message}.", _unreachable(facts))
    else:
        milliseconds = (time.perf_counter() - began) * 1000
        yield fine(f"App {read.app} is there; the Machines API answers in {milliseconds:.0f} ms.")


RENEW = (
    "Make one for this app: fly tokens create deploy -a APP -x 8760h, and set it: fly secrets set FLY_API_TOKEN='...', "
    "in "
    "quotes, as it holds a space."
)


def _unreachable(facts: Facts) -> str:
    if facts.is_local():
        return "Start the emulator: manage.py mq_dev, or manage.py mq_emulator."
    return "Check the network, FLY_API_HOSTNAME and https://status.flyio.net. Runs wait until it answers."


def _said(error: MachinesError) -> str:
    return f"{error.status}: {error.message}" if error.status else error.message


def token(facts: Facts) -> Iterator[Finding]:
    """Is the token one for this app alone, and no person's?"""
    read = facts.settings()
    _reachable(facts)
    try:
        parts = facts.token(own=True)
    except Unauthorized as error:
        yield failure(f"Fly does not accept the token ({_said(error)}): it expired, was revoked, or is cut.", RENEW)
        return
    except MachinesError as error:
        yield skipped(f"What the token allows cannot be asked: {_said(error)}.")
        return
    too_wide, covers = [*_too_wide(read, parts)], _covers(read.app, parts)
    yield from too_wide
    if not too_wide or covers.status == Status.FAILURE:
        yield covers


def _reachable(facts: Facts) -> None:
    """Raises Blocked when nobody answers; a refusal of the app is no reason not to ask for the token."""
    try:
        facts.app(own=True)
    except Unreachable as error:
        raise Blocked("app") from error
    except MachinesError:
        pass


def _too_wide(read: conf.Settings, parts: tuple[TokenInfo, ...]) -> Iterator[Finding]:
    pasted = [part.split()[-1] for part in read.api_token.split(",") if part.strip()]
    if any(part.user for part in parts) or any(part.startswith(PERSONAL_PREFIX) for part in pasted):
        yield warning(
            "The token is a person's: it opens everything that the person may do, and ends when they leave.", RENEW
        )
    elif parts and not any(part.apps for part in parts):
        organizations = ", ".join(sorted({part.org_slug for part in parts})) or "its organisation"
        yield warning(f"The token opens every app of {organizations}; a dispatcher needs one.", RENEW)
    if restricted := next((part.restricted_to_machine for part in parts if part.restricted_to_machine), ""):
        yield failure(
            f"The token is good in machine {restricted} alone: after the next deploy it opens nothing.", RENEW
        )


def _covers(name: str, parts: tuple[TokenInfo, ...]) -> Finding:
    apps = sorted({each for part in parts for each in part.apps})
    if apps and name not in apps:
        return failure(f"The token is for app {_listed(apps)}, not for {name}.", RENEW)
    if len(apps) > 1:
        return fine(f"The token opens {_listed(apps)}. Fly does not say when it expires: fly tokens list does.")
    return fine(f"The token opens app {name} alone. Fly does not say when it expires: fly tokens list does.")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# --- image and release ------------------------------------------------------------------------------------------------


def image(facts: Facts) -> Iterator[Finding]:
    """Is the image named exactly, and have machines come up with it?"""
    read = facts.settings()
    if not read.image:
        raise Blocked("settings")
    if not facts.is_local() and "@" not in read.image and _tag(read.image) in ("", "latest"):
        yield warning(
            f"Image {read.image} is another one after each push: machines of one release may differ.",
            "Leave FLY_IMAGE_REF to Fly, which names the release's image, or name a tag or a digest.",
        )
        return
    facts.database()
    if any(each.kind == CircuitKind.IMAGE for each in circuits.concerning(read.image, "")):
        yield failure(f"The registry does not know image {read.image}.", "Deploy again: the tag is gone, or was never.")
    elif count := machines.checked_in_with(read.image):
        yield fine(f"{count} machine{'s' * (count != 1)} came up with {read.image}.")
    else:
        yield skipped(f"No machine has run {read.image} yet: the first launch shows whether the registry has it.")


def _tag(reference: str) -> str:
    return reference.rpartition("/")[2].partition(":")[2]


def release(facts: Facts) -> Iterator[Finding]:
    """Is the image of this process the current release?"""
    read = facts.settings()
    facts.database()
    current = dispatchers.current_image()
    if not current:
        yield skipped("No dispatcher has said yet which release is current.")
    elif current != read.image:
        yield warning(
            f"This process is of image {read.image or 'none'}, and new machines run {current}.",
            "During a deploy this passes. If it lasts, the dispatchers are of another release: fly deploy, or restart "
            "them; or this process is an old one.",
        )
    else:
        yield fine(f"The current release is {current}, and so is this process.")


# --- regions ----------------------------------------------------------------------------------------------------------


def regions(facts: Facts) -> Iterator[Finding]:
    """Would the queues' machines find room in their regions now?"""
    wanted = _wanted(facts)
    organization = facts.organization()
    if not organization:
        yield skipped("Nobody says which organisation the app is of, so capacity cannot be asked.")
        return
    found: list[Finding] = []
    for number, each in enumerate(wanted[:PLACEMENTS]):
        if number >= 3 and not facts.is_local():
            time.sleep(PLACEMENT_PAUSE)
        found += _room(facts, organization, each)
    if left := max(0, len(wanted) - PLACEMENTS):
        found.append(skipped(f"{left} more size{'s' * (left != 1)} of machines not asked about."))
    sizes = f"{len(wanted)} size{'s' * (len(wanted) != 1)} asked"
    yield from found or [fine(f"There is room now for the machines of all queues ({sizes}).")]


@dataclass(frozen=True)
class _Wanted:
    """As many machines of one size as some queues may have at once, and where."""

    guest: Guest
    region: str
    queues: str
    count: int

    @property
    def words(self) -> str:
        cpus = f"{self.guest.cpus} {self.guest.cpu_kind} CPU{'s' * (self.guest.cpus != 1)}"
        return f"{cpus}, {self.guest.memory_mb} MB, in {self.region or 'any region'}"


def _wanted(facts: Facts) -> list[_Wanted]:
    most = conf.most_machines(facts.settings())
    queues: dict[tuple[Guest, str], list[tuple[str, int]]] = {}
    for _, queue, policy in facts.policies():
        size = Guest(policy.cpu_kind, policy.cpus, policy.memory_mb), ",".join(policy.regions)
        queues.setdefault(size, []).append((queue, policy.max_machines))
    return [
        _Wanted(guest, region, ", ".join(name for name, _ in named), min(most, sum(count for _, count in named)))
        for (guest, region), named in queues.items()
    ]


def _room(facts: Facts, organization: str, wanted: _Wanted) -> Iterator[Finding]:
    queues, size = wanted.queues, wanted.words
    try:
        placed = facts.client().placements(organization, wanted.guest, region=wanted.region, count=wanted.count)
    except Unauthorized:
        yield skipped(f"This token may not ask about capacity ({queues}).")
        return
    except (NoCapacity, QuotaReached) as error:
        yield failure(f"Queue {queues}: no room for {size} ({_said(error)}).", error.advice)
        return
    except Rejected as error:
        yield failure(
            f"Queue {queues}: Fly refuses {size} ({_said(error)}).",
            "Correct memory_mb, cpus, cpu_kind or regions of the queue; fly platform regions lists the regions.",
        )
        return
    except RateLimited:
        yield skipped(f"Fly was asked too often to say whether there is room for {size} ({queues}).")
        return
    room = sum(each.count for each in placed)
    if room < wanted.count:
        said = warning if room else failure
        yield said(
            f"Queue {queues}: room for {room} of {wanted.count} machines of {size}.",
            "List more regions for the queue, in order of preference, or lower its max_machines. No run fails of it.",
        )


# --- the app's machines -----------------------------------------------------------------------------------------------


def _live(facts: Facts) -> tuple[list[Machine], list[Machine]]:
    """The machines that fly deploy made, and our task machines; without those whose config is not known, and those for
    code that is not ours, which have nothing of the app on purpose.
    """
    known = [each for each in facts.machines() if each.config is not None and each.state != "destroyed"]
    deployed = [each for each in known if each.metadata.get("fly_platform_version")]
    ours = [each for each in known if each.metadata.get("mq_site") == site()]
    return deployed, [each for each in ours if each.metadata.get("mq_kind") != CONTAINER]


def _env(machine: Machine) -> dict[str, str]:
    """The machine's variables with hashes for values, without those in which machines differ on purpose."""
    env = (machine.config or {}).get("env")
    shown = env if isinstance(env, Mapping) else {}
    return {key: _hash(value) for key, value in shown.items() if key not in OWN_VARIABLES}


def _hash(value: Any) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


def _group(machine: Machine) -> str:
    return machine.metadata.get("fly_process_group") or machine.name


def drift(facts: Facts) -> Iterator[Finding]:
    """Have web, dispatcher and task machines the same image and variables?"""
    deployed, tasks = _live(facts)
    if not deployed and not tasks:
        yield skipped("The app has no machines to compare.")
        return
    found = [*_between_deployed(deployed), *_of_tasks(facts, deployed, tasks)]
    alike = f"{len(deployed)} deployed and {len(tasks)} task machines have the same image and variables."
    yield from found or [fine(alike)]


def _between_deployed(deployed: list[Machine]) -> Iterator[Finding]:
    for machine in deployed[1:]:
        if names := _differing(_env(deployed[0]), _env(machine)):
            yield warning(
                f"Machines {_group(deployed[0])} and {_group(machine)} differ in the variables {_listed(names)}.",
                "Set them in [env] of fly.toml, which is for all process groups, and deploy.",
            )
            break
    images = {str((each.config or {}).get("image")) for each in deployed}
    if len(images) > 1:
        yield warning(
            f"The deployed machines are of {len(images)} images.",
            "During a deploy this passes. If it lasts, the deploy stopped half-way: fly deploy again.",
        )


def _of_tasks(facts: Facts, deployed: list[Machine], tasks: list[Machine]) -> Iterator[Finding]:
    if not tasks:
        return
    wanted = _wanted_env(facts, deployed)
    if names := sorted({name for each in tasks for name in _differing(wanted, _env(each), only_wanted=True)}):
        yield warning(
            f"Task machines lack the variables {_listed(names)}, or have other values: they were launched before a "
            f"change.",
            "They leave when their work is done. If new ones are the same, restart the dispatcher, which reads the "
            "variables when it starts.",
        )
    facts.database()
    current = dispatchers.current_image()
    old = [each for each in tasks if current and (each.config or {}).get("image") != current]
    if old:
        yield warning(
            f"{len(old)} of {len(tasks)} task machines are not of the current image {current}.",
            "They leave when their run is done. If they stay, look at them in the admin's list of machines.",
        )


def _wanted_env(facts: Facts, deployed: list[Machine]) -> dict[str, str]:
    """What a task machine launched now gets, by its dispatcher's machine and the settings."""
    mine = os.environ.get("FLY_MACHINE_ID")
    base = next((each for each in deployed if each.id == mine), deployed[0] if deployed else None)
    fallback = {"DJANGO_SETTINGS_MODULE": _hash(os.environ.get("DJANGO_SETTINGS_MODULE", ""))}
    own = {key: _hash(value) for key, value in facts.settings().env.items()}
    passed_on = _env(base) if base is not None else fallback
    return {key: value for key, value in passed_on.items() if key not in facts.settings().withhold_secrets} | own


def _differing(one: dict[str, str], other: dict[str, str], *, only_wanted: bool = False) -> list[str]:
    keys = one.keys() if only_wanted else one.keys() | other.keys()
    return sorted(key for key in keys if one.get(key) != other.get(key))


def leaks(facts: Facts) -> Iterator[Finding]:
    """Do task machines get the token, which only a dispatcher needs?"""
    _, tasks = _live(facts)
    remedy = (
        "Remove it from [env] of fly.toml and from MACHINEQUEUE['ENV']: as a secret of the app it is withheld from "
        "task machines by itself. Then make a new token, since the old one was readable."
    )
    leaking = []
    for token in sorted(conf.TOKENS):
        if names := [each.name for each in tasks if _has(token, each.config or {})]:
            leaking.append(f"{token} is among the variables of the task machines {_listed(names)}.")
        if token in facts.settings().env:
            leaking.append(f"MACHINEQUEUE['ENV'] gives {token} to every task machine.")
    for sentence in leaking:
        yield failure(sentence, remedy)
    if not leaking:
        yield fine(f"None of {len(tasks)} task machines is given the token.")


def _has(token: str, config: Mapping[str, Any]) -> bool:
    parts = config.get("processes")
    rows = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    given = [each for part in rows for each in part.get("secrets") or [] if isinstance(each, Mapping)]
    variables = [part.get("env") or {} for part in (config, *rows)]
    return any(token in each for each in variables) or any(token in each.values() for each in given)


def grace(facts: Facts) -> Iterator[Finding]:
    """Are machines that Fly stops given the time to hand their work back?"""
    deployed, tasks = _live(facts)
    if not deployed and not tasks:
        yield skipped("The app has no machines to look at.")
        return
    short = [
        each for each in tasks if _stop(each)[1] < conf.GRACE_SECONDS or _stop(each)[0] not in ("SIGTERM", "SIGINT")
    ]
    if short:
        yield failure(
            f"Task machines {_listed(each.name for each in short)} are stopped with less than {conf.GRACE_SECONDS} s "
            f"of "
            "grace, or by a signal that ends them at once: their runs are lost with them.",
            "Somebody has updated them: launched by a dispatcher they get SIGTERM and 30 s. Destroy them; their runs "
            "are "
            "given to new ones.",
        )
    hasty = sorted({_group(each) for each in deployed if _stop(each)[1] < conf.GRACE_SECONDS})
    if hasty:
        yield warning(
            f"Process group {_listed(hasty)} is killed less than {conf.GRACE_SECONDS} s after it is asked to stop: a "
            "dispatcher in the midst of a launch leaves it for the next one to sort out, which takes a minute.",
            'Write kill_signal = "SIGTERM" and kill_timeout = 30 at the top of fly.toml, and deploy.',
        )
    if not short and not hasty:
        yield fine(f"All {len(deployed) + len(tasks)} machines have {conf.GRACE_SECONDS} s or more to stop.")


def _stop(machine: Machine) -> tuple[str, float]:
    """The signal and the seconds until SIGKILL; what is not said is as Fly has it, SIGINT and 5 s."""
    known = (machine.config or {}).get("stop_config")
    said = known if isinstance(known, Mapping) else {}
    return str(said.get("signal") or "SIGINT"), _seconds(said.get("timeout"))


def _seconds(duration: Any) -> float:
    """Of a Go duration as text ("1m30s") or as nanoseconds; 5.0 for anything else."""
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        return duration / 1e9
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", duration) if isinstance(duration, str) else []
    return sum(float(number) * units[unit] for number, unit in parts) if parts else 5.0
