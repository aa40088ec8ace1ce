"""Images: a reference stands for a directory (a checkout) and an interpreter."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machinequeue.machines.emulator.answers import no_sandbox

SANDBOX_BIN = "/sandbox/bin"
"""Where `python` is in a sandbox, whatever the interpreter is called where it really is."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """`reference` as in a config; `directory` is where its commands run, `python` what `python` means there."""

    reference: str
    directory: Path
    python: Path
    walled: bool = False
    """Whether it is somebody else's: its commands run in a sandbox (see `sandbox`), never in a checkout."""

    @classmethod
    def from_text(cls, text: str) -> Image:
        """From "REF=DIR" or "REF=DIR:PYTHON". Raises ValueError with a sentence."""
        reference, _, place = text.partition("=")
        directory, _, python = place.partition(":")
        if not reference or not directory:
            raise ValueError(f"an image is REF=DIR or REF=DIR:PYTHON, not {text!r}")
        if not Path(directory).is_dir():
            raise ValueError(f"image {reference}: there is no directory {directory}")
        if python and not os.access(python, os.X_OK):
            raise ValueError(f"image {reference}: {python} is not a program")
        # Not resolved: the link inside a virtual environment is what makes it one.
        return cls(reference, Path(directory).resolve(), Path(python or sys.executable).absolute())

    @property
    def digest(self) -> str:
        """A stable digest of the reference."""
        return f"sha256:{hashlib.sha256(self.reference.encode()).hexdigest()}"

    @property
    def pinned(self) -> str:
        """The reference by digest."""
        return f"{_without_tag(self.reference)}@{self.digest}"

    @property
    def search_path(self) -> str:
        """PATH inside the image."""
        return f"{SANDBOX_BIN if self.walled else self.python.parent}:{DEFAULT_PATH}"

    def command(self, argv: list[str]) -> list[str]:
        """`argv` with the image's interpreter in the place of `python`."""
        return [str(self.python), *argv[1:]] if argv[0] in ("python", "python3") else argv

    def described(self) -> dict[str, Any]:
        """The `image_ref` of a machine."""
        name = _without_tag(self.reference)
        registry, slash, repository = name.partition("/")
        if not slash or "." not in registry:
            registry, repository = "registry-1.docker.io", name
        tag = self.reference[len(name) + 1 :] if ":" in self.reference[len(name) :] else "latest"
        return {"registry": registry, "repository": repository, "tag": tag, "digest": self.digest, "labels": {}}


class Images:
    """The images that the registry knows, by tag and by digest. `withheld` says which it denies for now."""

    def __init__(self, images: list[Image], sandboxed: Sequence[str] = ()) -> None:
        self._known = {name: image for image in images for name in (image.reference, image.pinned)}
        self._sandboxed = sandboxed
        self.withheld: list[Callable[[str], bool]] = []

    def find(self, reference: str) -> Image | None:
        """The image, None when the registry has none of that name."""
        if self.withheld and any(denies(reference) for denies in self.withheld):
            return None
        known = self._known.get(reference)
        if known is None and any(fnmatch.fnmatchcase(reference, pattern) for pattern in self._sandboxed):
            return walled_image(reference)
        return known


def walled_image(reference: str) -> Image:
    """An image that is not ours: what stands for it is this computer's Python, without any environment's packages.

    Raises a Refusal where no sandbox can be made.
    """
    # Only now: the process that forks machines, which is forked from this one, is to stay small.
    from machinequeue.machines.emulator import sandbox

    python = Path(sys.executable).resolve()
    if why := sandbox.problem(sys.base_prefix):
        raise no_sandbox(reference, why)
    return Image(reference, Path("/tmp"), python, walled=True)  # noqa: S108 - its own


def _without_tag(reference: str) -> str:
    bare = reference.partition("@")[0]
    head, colon, tail = bare.rpartition(":")
    return head if colon and "/" not in tail else bare
