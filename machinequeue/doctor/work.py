"""What the rows say about how work goes."""

from collections.abc import Iterator

from machinequeue.doctor.facts import Facts
from machinequeue.doctor.findings import Finding, failure, fine, translated, warning
from machinequeue.health import timetable
from machinequeue.health import work as health
from machinequeue.lifecycle import CircuitKind
from machinequeue.records import circuits as broken
from machinequeue.records import profiles, runs
from machinequeue.records import queues as lanes

LONG_RUN_SECONDS = 60.0
BURST_SECONDS = 5
BASELINE = 1 / 16
"""What a new machine with shared CPUs has: seconds of full speed, and the share of it afterwards. From Fly's guide on
CPU performance."""

_MENDING = {
    CircuitKind.BOOT: "Machines start, but the project does not come up in them: read the log tail in the sentence, or "
    "fly logs, mend the image or its settings, and deploy.",
    CircuitKind.TOKEN: "Make a new token (fly tokens create deploy), set it (fly secrets set FLY_API_TOKEN=...).",
    CircuitKind.APP: "Check FLY_APP_NAME, or create the app.",
    CircuitKind.QUOTA: "Ask billing@fly.io to raise the organisation's limit, or lower max_machines.",
    CircuitKind.IMAGE: "The registry does not have the image: deploy again.",
    CircuitKind.REJECTED: "Fly refuses the configuration: correct the queue's size, regions or image.",
    CircuitKind.CAPACITY: "Add regions to the queue; or wait.",
}


def dispatcher(facts: Facts) -> Iterator[Finding]:
    """Is a dispatcher alive?"""
    facts.database()
    yield translated(health.dispatcher())


def backlog(facts: Facts) -> Iterator[Finding]:
    """Do runs wait for longer than they should?"""
    facts.database()
    yield translated(health.backlog())


def machines(facts: Facts) -> Iterator[Finding]:
    """Are there machines that should be gone by now?"""
    facts.settings()
    facts.database()
    yield translated(health.machines())


def schedules(facts: Facts) -> Iterator[Finding]:
    """Is every schedule on time?"""
    facts.database()
    yield translated(timetable.schedules())


def circuits(facts: Facts) -> Iterator[Finding]:
    """Has something kept failing until launches were stopped?"""
    facts.database()
    found = broken.all_open()
    for circuit in found:
        what = circuit.spec_key and f" (spec {circuit.spec_key})"
        yield failure(
            f"{circuit.get_kind_display()}{what}, {circuit.failures} times in a row: {_short(circuit.reason)}",
            _MENDING[CircuitKind(circuit.kind)] + " Then press Try again now in the admin's list of circuits.",
        )
    if not found:
        yield fine("No circuit is open.")


def queues(facts: Facts) -> Iterator[Finding]:
    """Is a queue paused, unknown to the settings, or are its launches failing?"""
    facts.database()
    known = {(backend, queue) for backend, queue, _ in facts.policies()}
    found = [finding for trouble in lanes.troubled() for finding in _troubled(trouble)]
    found += [
        warning(
            f"Runs wait in queue {queue} of {backend}, which TASKS does not name: they get the default policy.",
            "Name the queue in TASKS, or cancel its runs in the admin.",
        )
        for backend, queue in sorted({(each.backend, each.queue) for each in runs.due_groups()} - known)
    ]
    names = ", ".join(sorted({queue for _, queue in known}))
    yield from found or [fine(f"{'All queues take' if len(known) > 1 else 'The queue takes'} runs: {names}.")]


def _troubled(trouble: lanes.Trouble) -> Iterator[Finding]:
    if trouble.paused:
        yield warning(f"Queue {trouble.queue} is paused: its runs wait.", "Resume it in the admin's list of queues.")
    if trouble.failures:
        times = "time" if trouble.failures == 1 else "times"
        said = _short(trouble.reasons[-1]) if trouble.reasons else "nobody said why."
        yield warning(
            f"Queue {trouble.queue}: the last launch failed, {trouble.failures} {times} in a row: {said}",
            "It is tried again by itself. If it lasts, the reason says what to mend.",
        )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}…"


def cpu(facts: Facts) -> Iterator[Finding]:
    """Do tasks that run for long share their CPUs?"""
    facts.database()
    slow = [each for each in profiles.long_ones(LONG_RUN_SECONDS) if each[2].get("cpu_kind") == "shared"]
    for task, seconds, spec in slow:
        cpus = spec.get("cpus", 1)
        yield warning(
            f"{task} usually takes {seconds:,.0f} s on {cpus} shared CPU{'s' * (cpus != 1)}. A new machine computes at "
            f"full speed for about {BURST_SECONDS} s, and then at a sixteenth of it.",
            "If the task computes (and does not mostly wait), give it cpu_kind='performance' and memory_mb=2048 or "
            "more: it is often faster and no dearer. If it waits, shared CPUs are right.",
        )
    if not slow:
        yield fine(f"No task that usually takes over {LONG_RUN_SECONDS:g} s runs on shared CPUs.")
