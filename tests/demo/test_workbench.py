"""The workbench: visitors' code becomes a run of a container, one at a time, and only its visitor sees it."""

import uuid
from typing import Any

import pytest
from django.test import Client

from demo_site.store.examples import EXAMPLES
from machinequeue.models import TaskRun

pytestmark = pytest.mark.django_db


def post(client: Client, code: str) -> Any:
    return client.post("/workbench/", {"code": code})


def test_a_snippet_becomes_a_run(client: Client) -> None:
    answer = post(client, "print('hello')\n")
    run = TaskRun.objects.get()
    assert answer.headers["location"] == f"/workbench/{run.pk}/"
    assert run.task == "demo_site.store.snippets.run_snippet"
    assert run.kwargs["cmd"] == ["python", "main.py"]
    assert run.kwargs["files"]["main.py"]["text"].splitlines() == ["print('hello')"]
    assert run.kwargs["env"] == {}
    assert run.spec["image"] == "python:3.13-slim"
    page = client.get(answer.headers["location"]).text
    assert "print(&#x27;hello&#x27;)" in page
    assert "Waiting for a machine" in page
    assert client.get(f"/workbench/{run.pk}/state.json").json()["status"] == "READY"


def test_the_result_is_shown_as_text(client: Client) -> None:
    address = post(client, "print('<script>alert(1)</script>')").headers["location"]
    value = {
        "exit_code": 1,
        "stdout": "<script>alert(1)</script>",
        "stderr": "wrong",
        "truncated": True,
        "seconds": 0.5,
    }
    TaskRun.objects.update(status="SUCCESSFUL", return_value=value, finished_at="2026-01-01T00:00:00Z")
    page = client.get(address).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "Exit code 1 after 0.50 s." in page
    assert "more than is kept" in page


def test_one_at_a_time(client: Client) -> None:
    first = post(client, "print(1)").headers["location"]
    assert post(client, "print(2)").headers["location"] == first
    assert TaskRun.objects.count() == 1
    assert "One at a time" in client.get(first).text
    TaskRun.objects.update(status="FAILED", finished_at="2026-01-01T00:00:00Z")
    assert post(client, "print(2)").headers["location"] != first


def test_another_visitor_sees_nothing_of_it(client: Client) -> None:
    address = post(client, "print(1)").headers["location"]
    other = Client()
    assert other.get(address).status_code == 404
    assert other.get(f"{address}state.json").status_code == 404
    assert client.get(f"/workbench/{uuid.uuid4()}/").status_code == 404


@pytest.mark.parametrize("code", ["", "x" * 10_001])
def test_what_is_too_long_or_nothing_is_refused(client: Client, code: str) -> None:
    assert post(client, code).status_code == 200
    assert not TaskRun.objects.exists()


def test_a_form_of_another_site_is_refused() -> None:
    client = Client(enforce_csrf_checks=True)
    assert post(client, "print(1)").status_code == 403


@pytest.mark.parametrize("name", [*EXAMPLES, "nonsense"])
def test_the_examples(client: Client, name: str) -> None:
    page = client.get(f"/workbench/?example={name}")
    assert page.status_code == 200
    compile(EXAMPLES.get(name, EXAMPLES["primes"])[1], name, "exec")
