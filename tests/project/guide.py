"""Read a page of docs/ as its reader does: files to make, and commands to type, in order."""

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class File:
    """A block that begins with `# path`: the content of a file, or for one that exists, what is put at its end."""

    path: str
    content: str

    def put(self, folder: Path) -> None:
        target = folder / self.path
        before = target.read_text() + "\n" if target.exists() else ""
        target.write_text(before + self.content)


@dataclass(frozen=True)
class Command:
    """A line that begins with `$ `, and what the page says that it prints."""

    line: str
    prints: str


def steps(page: Path) -> list[File | Command]:
    """Every block of the page, in order. A block of several commands is several steps."""
    found: list[File | Command] = []
    for language, body in _BLOCK.findall(page.read_text()):
        if language == "console":
            for typed in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                line, _, prints = typed.partition("\n")
                found.append(Command(line, prints.strip()))
        else:
            first, _, rest = body.partition("\n")
            assert first.startswith("# "), f"a block of {page.name} names no file: {first!r}"
            found.append(File(first.removeprefix("# "), rest))
    return found
