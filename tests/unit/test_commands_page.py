"""docs/reference/commands.md lists every command with its options, in the words of the command itself."""

import argparse
import re
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

import machinequeue

PAGE = Path(machinequeue.__file__).parents[1] / "docs" / "reference" / "commands.md"
COMMANDS = sorted(name for name in get_commands() if name.startswith("mq_"))
OF_DJANGO = {
    "help", "version", "verbosity", "settings", "pythonpath", "traceback", "no_color", "force_color", "skip_checks",
}  # fmt: skip


def section(name: str) -> str:
    """What the page says of a command: a heading, its help, and a table of its options where it has any."""
    command = load_command_class("machinequeue", name)
    parser = command.create_parser("manage.py", name)
    rows = [line for action in parser._actions for line in lines(action)]
    text = f"## {name}\n\n{' '.join(command.help.split())}\n"
    text += f"\n{' '.join(parser.epilog.split())}\n" if parser.epilog else ""
    return text + ("\n| option | meaning |\n| --- | --- |\n" + "".join(rows) if rows else "")


def lines(action: argparse.Action, before: str = "") -> list[str]:
    """The rows of an option; of a word that chooses what is done, those of each choice with its own options."""
    if action.dest in OF_DJANGO:
        return []
    if not isinstance(action, argparse._SubParsersAction):
        return [row(f"{before}{shown(action)}", action.help)]
    helps = {choice.dest: choice.help for choice in action._choices_actions}
    found = []
    for name, parser in action.choices.items():
        found.append(row(name, helps.get(name)))
        found += [line for each in parser._actions for line in lines(each, f"{name} ")]
    return found


def row(typed: str, meaning: str | None) -> str:
    return f"| `{typed.replace('|', chr(92) + '|')}` | {' '.join((meaning or '').split()).replace('|', '&#124;')} |\n"


def shown(action: argparse.Action) -> str:
    """An option as it is typed: `--port PORT`, `--json`, `--kind a/b`, `name`, `[addrport]`."""
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest
    if not action.option_strings:
        return f"[{metavar}]" if action.nargs in ("?", "*") else metavar
    typed = "/".join(map(str, action.choices or ())) or metavar.upper()
    value = "" if action.nargs == 0 else f" {action.metavar or typed}"
    return f"{', '.join(action.option_strings)}{value}"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_says_what_the_command_says(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert section(name) in page, f"{PAGE.name} lacks this section, or an option of it:\n\n{section(name)}"


def test_the_page_names_no_command_that_is_not_there_and_keeps_their_order() -> None:
    named = re.findall(r"^## (mq_\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    missing = [name for name in COMMANDS if name not in named]
    assert named == COMMANDS, f"missing: {missing or 'none'}; unknown: {sorted({*named} - {*COMMANDS}) or 'none'}"
