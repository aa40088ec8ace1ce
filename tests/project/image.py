"""The steps of docker/Dockerfile, followed on this computer instead of in a container.

What a container gives (Debian's packages, a user, the root of a file system) is passed over; what is ours (the files
that are copied, the wheel, the environment, static files, the commands) is done as written, below a folder.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker/Dockerfile"
PASSED_OVER = ("apt-get", "useradd", "pip install --no-cache-dir")
"""What these words are in needs Debian, root, or the network."""


def find_uv() -> str | None:
    """A uv that works: on PATH there may be a shim with nothing behind it."""
    for candidate in (shutil.which("uv"), ROOT / ".tools/bin/uv"):
        if candidate and Path(candidate).exists():
            asked = subprocess.run([candidate, "--version"], capture_output=True, check=False)
            if asked.returncode == 0:
                return str(candidate)
    return None


def instructions(text: str) -> list[tuple[str, str]]:
    """(KEYWORD, rest) of a Dockerfile: comments away, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves this file or folder out. The last pattern that fits decides."""
    left_out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        translated = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*").replace(r"\[co\]", "[co]")
        if re.fullmatch(f"{translated}(/.*)?", path):
            left_out = not line.startswith("!")
    return left_out


@dataclass
class Image:
    """The image's file system below `root`, and what its processes find in their environment."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    followed: list[str] = field(default_factory=list)
    """The RUN lines that were executed."""

    @classmethod
    def build(cls, root: Path, uv: str) -> "Image":
        """Follow every instruction. Raises CalledProcessError with the output of a step that fails."""
        image, folder, stage = cls(root), "/", ""
        # How this computer reaches its package index is its own matter.
        build_only = {**os.environ, "PATH": f"{Path(uv).parent}:{os.environ['PATH']}"}
        image.environment = dict(build_only)
        for word, rest in instructions(DOCKERFILE.read_text()):
            match word:
                case "FROM":
                    stage = rest.partition(" AS ")[2]
                    image.environment = dict(build_only) if stage else {}
                case "WORKDIR":
                    folder = rest
                    image.at(folder).mkdir(parents=True, exist_ok=True)
                case "ENV":
                    image.environment |= dict(image.here(pair).split("=", 1) for pair in rest.split())
                case "COPY":
                    image._copy(rest, folder)
                case "RUN":
                    image._run(rest, folder, python=bool(stage))
                case "CMD":
                    image.command = [image.here(each) for each in re.findall(r'"([^"]*)"', rest)]
        image.environment["PATH"] = image.environment["PATH"].replace("$PATH", os.environ["PATH"])
        return image

    def at(self, path: str) -> Path:
        """Where a path of the image is on this computer."""
        return self.root / path.lstrip("/")

    def here(self, text: str) -> str:
        """The text with the image's own folders replaced by where they are here."""
        return re.sub(r"(?<![\w/.])(?=/(app|venv|dist|src)\b)", str(self.root), text)

    def _copy(self, rest: str, folder: str) -> None:
        words = rest.split()
        if words[0] == "--from=build":
            return  # both stages share one file system here
        *sources, target = words
        for source in sources:
            assert not ignored(source), f"COPY {source}: .dockerignore leaves it out"
            # A folder's content is copied, and a file into a folder whose name ends with a slash.
            to = self.at(f"{folder}/{target}")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / source, to)

    def _run(self, line: str, folder: str, *, python: bool) -> None:
        if any(words in line for words in PASSED_OVER):
            return
        line = self.here(line).replace("sqlite:////tmp/", f"sqlite:///{self.root}/tmp/")
        if python:  # the base image has one Python; this computer may have several
            line = line.replace("uv venv ", f"uv venv --python {sys.executable} ")
        environment = dict(self.environment)
        environment["PATH"] = environment["PATH"].replace("$PATH", os.environ["PATH"])
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", line],
            cwd=self.at(folder),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {line}\n{done.stdout[-4000:]}"
        self.followed.append(line)
