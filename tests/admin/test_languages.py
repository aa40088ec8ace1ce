"""The German catalogue: complete, compiled, and with the same places for numbers."""

import gettext
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.test import Client
from django.utils import translation

import machinequeue
from machinequeue.admin import wording
from tests.admin import rows

CATALOGUE = Path(machinequeue.__file__).parent / "locale/de/LC_MESSAGES"


def test_the_admin_speaks_german(operator: Client) -> None:
    rows.one_of_each()
    text = operator.get("/admin/machinequeue/taskrun/", headers={"accept-language": "de"}).content.decode()
    for words in (
        "Fehlgeschlagen",
        "Warteschlange",
        "die Warteschlange ist angehalten",
        "Nach eingereiht",
        "1 verloren",
    ):
        assert words in text
    # Catalogues of all apps are one: a word of ours must not become the label of Django's own button "Run".
    assert not re.search(r"Lauf\s*</button>", text)
    run = rows.enqueue()
    operator.post("/admin/machinequeue/taskrun/", {"action": "cancel_runs", "_selected_action": [str(run.pk)]})
    operator.cookies["django_language"] = "de"
    data = {"action": "retry_runs", "_selected_action": [str(run.pk)]}
    answer = operator.post("/admin/machinequeue/taskrun/", data, follow=True)
    assert "1 Lauf wird wiederholt." in [str(message) for message in answer.context["messages"]]


def test_what_holds_launches_back_is_said_in_german(operator: Client) -> None:
    rows.hold_back(rows.enqueue())
    rows.learn()
    for address, words in {
        "taskrun": ("Maschinen melden sich nicht", "Starts sind seit", "Nächster Versuch: in"),
        "circuit": ("Startsperre", "Zurückgehalten", "5 Fehlstarts in Folge", "wartende Läufe"),
        "taskprofile": ("512 MB waren zu wenig", "Gelernten Speicher vergessen", "1.024 MB"),
    }.items():
        text = operator.get(f"/admin/machinequeue/{address}/", headers={"accept-language": "de"}).content.decode()
        for word in words:
            assert word.lower() in text.lower(), word


def test_numbers_follow_the_language() -> None:
    with translation.override("de"):
        assert wording.duration(4.26) == "4,3 s"
        assert wording.megabytes(2048) == "2.048 MB"


def test_every_translation_keeps_the_places_of_its_text() -> None:
    blocks = (CATALOGUE / "django.po").read_text().split("\n\n")[1:]
    assert len(blocks) > 200
    for block in blocks:
        said, _, translated = block.partition("\nmsgstr")
        assert not re.search(r'^msgstr(\[\d\])? ""$', block, re.MULTILINE), block
        assert set(re.findall(r"%\(\w+\)\w|%\d*d", said)) == set(re.findall(r"%\(\w+\)\w|%\d*d", translated)), block


@pytest.mark.skipif(shutil.which("xgettext") is None, reason="xgettext finds the texts to translate")
def test_every_text_of_the_code_is_translated(tmp_path: Path) -> None:
    package = tmp_path / "machinequeue"
    shutil.copytree(CATALOGUE.parents[2], package, ignore=shutil.ignore_patterns("__pycache__", "*.mo"))
    extract = [sys.executable, "-m", "django", "makemessages", "--locale", "de", "--no-location"]
    subprocess.run(extract, cwd=package, check=True, capture_output=True)
    for block in (package / "locale/de/LC_MESSAGES/django.po").read_text().split("\n\n")[1:]:
        assert "fuzzy" not in block.partition("msgid")[0], block
        assert not re.search(r'^msgstr(\[\d\])? ""$(?!\n")', block, re.MULTILINE), block


@pytest.mark.skipif(shutil.which("msgfmt") is None, reason="msgfmt compiles catalogues")
def test_what_is_compiled_is_what_is_written(tmp_path: Path) -> None:
    compiled = tmp_path / "django.mo"
    subprocess.run(["msgfmt", "-o", compiled, CATALOGUE / "django.po"], check=True)
    assert _read(compiled) == _read(CATALOGUE / "django.mo")


def _read(compiled: Path) -> dict[str, str]:
    with compiled.open("rb") as file:
        catalogue: dict[str, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    return catalogue
