"""How values read on a page: statuses as badges, seconds in human units, JSON, links, one line of a long text."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.urls import reverse
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.translation import gettext as _

from machinequeue import conf
from machinequeue.lifecycle import (
    AttemptStatus,
    BackupStatus,
    DrillStatus,
    MachineStatus,
    RunStatus,
    ServerlessStatus,
)
from machinequeue.models import Circuit, Machine, ServerlessMachine, TaskProfile, TaskRun

NOTHING = "–"
ONE_LINE = 60
"""Characters of JSON that are not spread over several lines."""
_DIGEST = len("sha256:") + 12

# The look of a badge; its text says the status, so that nobody depends on seeing colours.
_LOOKS: dict[str, str] = {
    RunStatus.READY: "quiet",
    RunStatus.RUNNING: "active",
    RunStatus.SUCCESSFUL: "good",
    RunStatus.FAILED: "bad",
    RunStatus.CANCELLED: "warn",
    RunStatus.EXPIRED: "warn",
    AttemptStatus.RUNNING: "active",
    AttemptStatus.SUCCEEDED: "good",
    AttemptStatus.FAILED: "bad",
    AttemptStatus.TIMED_OUT: "bad",
    AttemptStatus.OUT_OF_MEMORY: "bad",
    AttemptStatus.LOST: "bad",
    AttemptStatus.CANCELLED: "warn",
    AttemptStatus.INTERRUPTED: "warn",
    MachineStatus.RESERVED: "quiet",
    MachineStatus.CREATED: "active",
    MachineStatus.BOOTED: "active",
    MachineStatus.IDLE: "good",
    MachineStatus.BUSY: "active",
    MachineStatus.RETIRING: "warn",
    MachineStatus.GONE: "quiet",
    BackupStatus.RUNNING: "active",
    BackupStatus.SUCCEEDED: "good",
    BackupStatus.FAILED: "bad",
    DrillStatus.PROVEN: "good",
    DrillStatus.NOT_PROVEN: "warn",
    ServerlessStatus.WISHED: "quiet",
    ServerlessStatus.CREATING: "active",
    ServerlessStatus.READY: "good",
}


def badge(text: Any, look: str) -> SafeString:
    """A coloured word; looks: quiet, active, good, warn, bad."""
    return format_html('<span class="mq-badge mq-{}">{}</span>', look, text)


def status(row: Any) -> SafeString:
    """The status of a run, an attempt or a machine."""
    return badge(row.get_status_display(), _LOOKS.get(row.status, "quiet"))


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter: 340 ms, 4.2 s, 3 min 05 s, 2 h 10 min, 4 d 3 h."""
    if seconds is None:
        return NOTHING
    seconds = max(seconds, 0.0)
    if seconds < 0.9995:
        return _("%(number)d ms") % {"number": round(seconds * 1000)}
    if seconds < 59.95:
        return _("%(number)s s") % {"number": number_format(round(seconds, 1), decimal_pos=1)}
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return _two(_("%d min"), minutes, _("%02d s"), rest)
    hours, rest = divmod(minutes, 60)
    if hours < 24:
        return _two(_("%d h"), hours, _("%02d min"), rest)
    return _two(_("%d d"), hours // 24, _("%d h"), hours % 24)


def _two(large: str, many: int, small: str, few: int) -> str:
    return f"{large % many} {small % few}" if few else large % many


def between(begin: datetime | None, end: datetime | None) -> str:
    """The time from one moment to the other."""
    return NOTHING if begin is None or end is None else duration((end - begin).total_seconds())


def ago(moment: datetime | None, now: datetime) -> str:
    """How long before now; exact to the second, which is what a stale page shows."""
    return NOTHING if moment is None else _("%(duration)s ago") % {"duration": between(moment, now)}


def when(moment: datetime | None) -> str:
    """A moment in the site's time zone, to the second."""
    if moment is None:
        return NOTHING
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return f"{local:%Y-%m-%d %H:%M:%S}"


def clock(moment: datetime, now: datetime) -> SafeString:
    """A moment for a column: today's time, else date and time; all of it as a tooltip."""
    full, today = when(moment), when(now)[:10]
    short = full[11:] if full[:10] == today else full[:16]
    return format_html('<span class="mq-moment" title="{}">{}</span>', full, short)


def megabytes(number: int | None) -> str:
    return NOTHING if number is None else _("%(number)s MB") % {"number": number_format(number, force_grouping=True)}


def one_line(text: str, longest: int = 110) -> str | SafeString:
    """The first line of a text, shortened; all of it as a tooltip."""
    lines = text.strip().splitlines()
    if not lines:
        return ""
    short = Truncator(lines[0]).chars(longest)
    return short if short == text else format_html('<span title="{}">{}</span>', text, short)


def pretty(value: Any) -> SafeString:
    """JSON, over several lines where it is long, in a block that scrolls."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > ONE_LINE:
        text = json.dumps(value, indent=2, ensure_ascii=False)
    return block(text)


def block(text: str) -> SafeString:
    """A long text in a block that scrolls."""
    return format_html('<pre class="mq-block mq-json">{}</pre>', text)


def task(path: str) -> SafeString:
    """The task's own name; its path as a tooltip."""
    return format_html('<span title="{}">{}</span>', path, path.rpartition(".")[2])


def run_link(run: TaskRun, text: Any = None) -> SafeString:
    address = reverse("admin:machinequeue_taskrun_change", args=[run.pk])
    return format_html('<a href="{}">{}</a>', address, text or task(run.task))


def machine_link(machine: Machine | None) -> SafeString | str:
    """To the machine's page; the name is shown as Fly shows it, its id as a tooltip."""
    if machine is None:
        return NOTHING
    address = reverse("admin:machinequeue_machine_change", args=[machine.pk])
    return format_html('<a href="{}" title="{}" class="mq-name">{}</a>', address, machine.fly_id, machine.name)


def circuit_link(circuit: Circuit) -> SafeString:
    address = reverse("admin:machinequeue_circuit_change", args=[circuit.pk])
    return format_html('<a href="{}">{}</a>', address, circuit.get_kind_display())


def profile_link(profile: TaskProfile) -> SafeString:
    address = reverse("admin:machinequeue_taskprofile_change", args=[profile.pk])
    return format_html('<a href="{}">{}</a>', address, task(profile.task))


def fly_link(machine: Machine | ServerlessMachine) -> SafeString | str:
    """The machine's id, linked to Fly's dashboard unless its API is a local one."""
    if not machine.fly_id:
        return NOTHING
    if conf.settings().api_url != conf.PUBLIC_API:
        return format_html("<code>{}</code>", machine.fly_id)
    address = f"https://fly.io/apps/{machine.app}/machines/{machine.fly_id}"
    return format_html('<a href="{}" rel="noreferrer"><code>{}</code></a>', address, machine.fly_id)


def size(spec: Mapping[str, Any]) -> str:
    """What a spec asks for, as Fly names sizes: shared-1x 512 MB."""
    return f"{spec.get('cpu_kind', '?')}-{spec.get('cpus', '?')}x {megabytes(spec.get('memory_mb'))}"


def image(reference: str) -> SafeString:
    """The end of an image's reference, its digest shortened; all of it as a tooltip."""
    name, at, digest = reference.rpartition("/")[2].partition("@")
    return format_html('<span class="mq-name" title="{}">{}</span>', reference, name + at + digest[:_DIGEST])


def next_launch(circuit: Circuit, now: datetime) -> str:
    """When the next launch of what a circuit holds back may be tried."""
    if circuit.next_at <= now:
        return _("due now")
    return _("in %(duration)s") % {"duration": between(now, circuit.next_at)}


def exit_in_words(event: Mapping[str, Any] | None) -> str:
    """How a machine's process ended, from Fly's exit event."""
    if not event:
        return NOTHING
    if event.get("oom_killed"):
        return _("out of memory")
    parts = []
    if (event.get("signal") or -1) > 0:  # Fly says -1 for none
        parts.append(_("signal %(number)s") % {"number": event["signal"]})
    if event.get("exit_code") is not None:
        parts.append(_("exit code %(number)s") % {"number": event["exit_code"]})
    if event.get("requested_stop"):
        parts.append(_("was asked to stop"))
    if event.get("error"):
        parts.append(str(event["error"]))
    return ", ".join(parts) or _("ended")


def stages(seconds: Mapping[str, float] | None) -> str:
    """When each stage was reached, in that order, which JSON of PostgreSQL forgets: fork 4 ms, call 1.4 s."""
    reached = sorted((seconds or {}).items(), key=lambda stage: stage[1])
    return ", ".join(f"{name} {duration(moment)}" for name, moment in reached) or NOTHING


def progress(said: Mapping[str, Any] | None) -> SafeString | str:
    """A bar (when the task said of how much) and what the task said."""
    if not said:
        return NOTHING
    current, total, message = said.get("current"), said.get("total"), said.get("message") or ""
    if not total or current is None:
        return message or (NOTHING if current is None else number_format(current))
    percent = f"{min(max(current / total, 0), 1):.0%}"
    return format_html(
        '<progress class="mq-progress" value="{}" max="{}">{}</progress> {} <span class="mq-quiet">{}</span>',
        str(current),
        str(total),
        percent,
        percent,
        message,
    )


def with_note(main: Any, note: Any, look: str = "") -> SafeString:
    """A cell of two lines: what it is, and small below what to know about it."""
    if not note or note == NOTHING:
        return format_html("{}", main)
    return format_html('{}<div class="mq-note {}">{}</div>', main, look, note)


def lines(rows: list[str]) -> SafeString | str:
    """One under the other."""
    return format_html_join(SafeString("<br>"), "{}", ((row,) for row in rows)) if rows else NOTHING
