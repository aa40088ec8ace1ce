"""docs/explanation/security.md: each claim names a test that exists, or says that it is Fly's."""

import re

import pytest

from tests.project.image import ROOT

PAGE = (ROOT / "docs/explanation/security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_the_page_names_exists(path: str, name: str) -> None:
    assert f"def {name}(" in (ROOT / path).read_text() if name else (ROOT / path).is_file()


def test_every_claim_of_the_tables_is_tested_or_fly_s() -> None:
    holds, can, cannot = (part.splitlines()[2:] for part in PAGE.split("\n\n") if part.startswith("|"))
    for row in [*holds, *cannot]:
        assert re.search(r"`tests/|\bFly\b|the same `DATABASE_URL`|the image runs as", row.split("|")[-2]), row
    assert len(can) == 7


def test_the_settings_that_it_shows_are_settings() -> None:
    from machinequeue import conf

    for shown in re.findall(r"^MACHINEQUEUE = (.*)$", PAGE, re.MULTILINE):
        values = eval(shown)  # noqa: S307 - a literal of our own page
        assert conf.read_settings(values, {"FLY_API_TOKEN": "FlyV1 fm2_x"}, debug=False)[1] == []
