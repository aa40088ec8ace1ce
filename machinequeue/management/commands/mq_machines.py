"""The machines of our app."""

import json
from argparse import SUPPRESS
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from machinequeue import fleet
from machinequeue.fleet import Fleet, Seen

WIDTHS = {"NAME": 32, "ID": 14, "STATE": 10, "IN": 3, "SIZE": 14, "AGE": 5, "USD/H": 7, "FOR US": 8}
ACTIONS = {
    "show": "All that is known of one machine, with its run.",
    "start": "Start a machine that is stopped.",
    "stop": "Let its run go back to the queue, and stop it.",
    "destroy": "End it for good.",
    "logs": "What it printed.",
}


class Command(BaseCommand):
    help = (
        "List, show, start, stop or destroy machines of the app, or read what they printed. Ours only, without --all."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        _add_list_arguments(parser)
        actions = parser.add_subparsers(dest="action", metavar="list, show, start, stop, destroy, logs")
        # Without a default of its own, as it would undo an --all that stands before the word `list`.
        _add_list_arguments(actions.add_parser("list", help="A table; the default."), default=SUPPRESS)
        for name, meaning in ACTIONS.items():
            action = actions.add_parser(name, help=meaning)
            action.add_argument("machine", metavar="NAME|ID")
            if name == "show":
                action.add_argument("--json", action="store_true", default=SUPPRESS)
            elif name == "logs":
                action.add_argument("--follow", action="store_true", help="Until the machine is gone, or Ctrl-C.")
            else:
                action.add_argument("--yes-not-ours", action="store_true", help="Touch a machine that is not ours.")
            if name == "destroy":
                action.add_argument("--force", action="store_true", help="Also one that is at a run.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with fleet.opened() as ours:
                getattr(self, f"_{options['action'] or 'list'}")(ours, options)
        except fleet.Refused as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    def _list(self, ours: Fleet, options: dict[str, Any]) -> None:
        found = ours.list(everything=bool(options.get("all")))
        if options.get("json"):
            self.stdout.write(json.dumps([seen.as_dict() for seen in found], indent=2))
            return
        if not found:
            self.stdout.write("No machines." if options.get("all") else "No machines of ours; --all shows others.")
            return
        self.stdout.write(_line(WIDTHS.keys()))
        for seen in found:
            self.stdout.write(_line(_cells(seen)))
        known = [seen.per_hour for seen in found if seen.per_hour is not None]
        self.stdout.write(f"{len(found)} machine{'s' * (len(found) != 1)}, {sum(known):.4f} USD an hour now.")

    def _show(self, ours: Fleet, options: dict[str, Any]) -> None:
        described = ours.find(options["machine"]).as_dict()
        if options["json"]:
            self.stdout.write(json.dumps(described, indent=2))
            return
        for name, value in described.items():
            if name == "events":
                self.stdout.write("events:")
                for event in value:
                    self.stdout.write(f"  {_event(event)}")
            elif value not in (None, "", [], {}):
                self.stdout.write(f"{name}: {_plain(value)}")

    def _start(self, ours: Fleet, options: dict[str, Any]) -> None:
        self.stdout.write(ours.start(ours.find(options["machine"]), not_ours=options["yes_not_ours"]))

    def _stop(self, ours: Fleet, options: dict[str, Any]) -> None:
        self.stdout.write(ours.stop(ours.find(options["machine"]), not_ours=options["yes_not_ours"]))

    def _destroy(self, ours: Fleet, options: dict[str, Any]) -> None:
        seen = ours.find(options["machine"])
        self.stdout.write(ours.destroy(seen, not_ours=options["yes_not_ours"], force=options["force"]))

    def _logs(self, ours: Fleet, options: dict[str, Any]) -> None:
        for line in ours.logs(ours.find(options["machine"]), follow=options["follow"]):
            at = f"{line.timestamp:%Y-%m-%d %H:%M:%S} " if line.timestamp else ""
            self.stdout.write(f"{at}{line.message.rstrip()}")
            self.stdout.flush()


def _add_list_arguments(parser: CommandParser, **default: Any) -> None:
    parser.add_argument("--all", action="store_true", help="List those too that are not ours.", **default)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of text.", **default)


def _event(event: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
    code = f", exit code {event['exit']['exit_code']}" if event["exit"] else ""
    return f"{at:%Y-%m-%d %H:%M:%S} {event['type']}: {event['status']}{code}"


def _cells(seen: Seen) -> list[str]:
    machine, guest = seen.machine, seen.machine.guest
    size = f"{guest.cpus}{guest.cpu_kind[0]} {guest.memory_mb} MB" if guest is not None else "?"
    cost = "?" if seen.per_hour is None else f"{seen.per_hour:.4f}" if seen.per_hour else "-"
    return [machine.name, machine.id, machine.state, machine.region, size, _age(seen.age), cost, seen.work]


def _line(cells: Any) -> str:
    fitted = [_cut(cell, width).ljust(width) for cell, width in zip(cells, WIDTHS.values(), strict=True)]
    return " ".join(fitted).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list):
        return "; ".join(_plain(each) for each in value)
    return str(value)
