"""The pages of backups and drills: what is stored, what is proven, and no way to change it."""

from datetime import timedelta
from typing import Any

from django.test import Client

from machinequeue.lifecycle import DrillStatus
from machinequeue.models import Backup
from machinequeue.records import backups

SENTENCE = "public.store_purchase has 11 rows instead of 12 rows."


def a_backup(name: str, **facts: Any) -> Backup:
    made = backups.start(database="default", kind="database", run_id=None, compressed=True)
    backups.call(made.pk, name)
    known = {"seconds": 3.2, "size_bytes": 48_000_000, "sha256": "ab" * 32, "counts": {"public.store_purchase": 12}}
    backups.succeed(made.pk, **{**known, **facts})
    return made


def a_drill(backup: Backup, status: DrillStatus, reason: str, **facts: Any) -> None:
    backups.finish_drill(backups.start_drill(backup.pk, None).pk, status, reason, **facts)


def the_nights() -> list[Backup]:
    """One of each kind; the last one failed."""
    proven, refuted, listed, removed, untried = (
        a_backup(f"default-shop-2026-11-1{number}-030000.psql.bin") for number in range(5)
    )
    a_drill(proven, DrillStatus.FAILED, "an older drill")
    a_drill(proven, DrillStatus.PROVEN, "28 tables, 225 rows: all as backed up.", method="throwaway server")
    a_drill(refuted, DrillStatus.FAILED, SENTENCE, differences={"public.store_purchase": [12, 11]})
    a_drill(listed, DrillStatus.NOT_PROVEN, "Only listed and read from end to end.")
    backups.removed(removed.pk)
    failed = backups.start(database="default", kind="database", run_id=None)
    backups.fail(failed.pk, "pg_dump ended with exit code 1: <server closed the connection>")
    return [proven, refuted, listed, removed, untried, failed]


def test_the_list_says_what_is_proven(operator: Client, django_assert_max_num_queries: Any) -> None:
    the_nights()
    with django_assert_max_num_queries(12):
        text = operator.get("/admin/machinequeue/backup/").content.decode()
    for words in (">Proven<", ">Not proven<", ">No longer stored<", ">Never tried<", SENTENCE, "45.8", "3.2 s"):
        assert words in text.replace("\xa0", " "), words
    assert "&lt;server closed" in text
    assert "an older drill" not in text
    assert "Add backup" not in text


def test_a_backup_has_a_page(operator: Client) -> None:
    proven, *_, failed = the_nights()
    text = operator.get(f"/admin/machinequeue/backup/{proven.pk}/change/").content.decode()
    assert "ab" * 32 in text
    assert "public.store_purchase" in text
    assert text.count("/admin/machinequeue/restoredrill/") >= 3
    text = operator.get(f"/admin/machinequeue/backup/{failed.pk}/change/").content.decode()
    assert "exit code 1: &lt;server closed the connection&gt;" in text
    assert "without a name" not in text.partition("drills")[2]


def test_a_drill_has_a_page_with_its_differences(operator: Client) -> None:
    _, refuted, *_ = the_nights()
    drill = refuted.drills.get()
    assert SENTENCE in operator.get("/admin/machinequeue/restoredrill/").content.decode()
    text = operator.get(f"/admin/machinequeue/restoredrill/{drill.pk}/change/").content.decode()
    assert SENTENCE in text
    assert "{&quot;public.store_purchase&quot;: [12, 11]}" in text


def test_they_are_read_only(reader: Client) -> None:
    proven, *_ = the_nights()
    for model, pk in (("backup", proven.pk), ("restoredrill", proven.drills.all()[0].pk)):
        base = f"/admin/machinequeue/{model}/"
        assert reader.get(base).status_code == reader.get(f"{base}{pk}/change/").status_code == 200
        assert reader.get(f"{base}add/").status_code == 403
        assert reader.post(f"{base}{pk}/delete/", {"post": "yes"}).status_code == 403
    assert Backup.objects.filter(pk=proven.pk).exists()


def test_in_german(operator: Client) -> None:
    the_nights()
    text = operator.get("/admin/machinequeue/backup/", headers={"accept-language": "de"}).content.decode()
    for words in (
        "Sicherung",
        "Bewiesen",
        "Nicht bewiesen",
        "Nie versucht",
        "Nicht mehr aufbewahrt",
        "Wiederherstellung",
    ):
        assert words in text, words


def test_ages_are_the_databases(operator: Client) -> None:
    made = a_backup("default-shop-2026-11-19-030000.psql.bin")
    Backup.objects.update(started_at=backups.recent()[0].now - timedelta(hours=26))  # type: ignore[attr-defined]
    assert "26 h" in (text := operator.get("/admin/machinequeue/backup/").content.decode()) or "1 d 2 h" in text
    assert backups.age(made) >= 26 * 3600
