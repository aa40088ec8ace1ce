"""The pages of serverless machines: read-only, in words, in German too, and in a browser."""

from typing import Any

import pytest
from django.test import Client

from machinequeue.models import ServerlessMachine

PAGE = "/admin/machinequeue/serverlessmachine/"
SIZE = {"cpu_kind": "shared", "cpus": 2, "memory_mb": 2048, "regions": ["cdg"]}


def some_rows() -> list[ServerlessMachine]:
    common: dict[str, Any] = {"app": "shop", "size": SIZE, "image": "registry.fly.io/shop:deployment-01JD"}
    made = [
        ServerlessMachine(
            size_key="a", name="mq-serverless-a1", fly_id="f1", status="ready", state="started", **common
        ),
        ServerlessMachine(
            size_key="b", name="mq-serverless-b1", status="wished", failures=2, error="no capacity in cdg", **common
        ),
    ]
    for row in made:
        row.save()
    return made


@pytest.mark.django_db
def test_an_operator_reads_what_there_is_and_why(operator: Client) -> None:
    ready, wished = some_rows()
    listed = operator.get(PAGE).content.decode()
    for words in ("mq-serverless-a1", "Ready", "shared-2x 2,048", "Wished for", "no capacity in cdg"):
        assert words in listed, words
    assert f"{PAGE}add/" not in listed
    page = operator.get(f"{PAGE}{wished.pk}/change/").content.decode()
    assert "no capacity in cdg" in page
    assert operator.post(f"{PAGE}{ready.pk}/change/", {"status": "gone"}).status_code == 403
    german = operator.get(PAGE, headers={"accept-language": "de"}).content.decode()
    for words in ("Serverless-Maschine", "Bereit", "Gewünscht", "zuletzt angefragt"):
        assert words.lower() in german.lower(), words
