"""What the whole run of the tests shares: servers, and databases of its own on them."""

import shutil
from collections.abc import Iterator

import pytest

from tests import services


@pytest.fixture(scope="session", autouse=True)
def _scratch() -> Iterator[None]:
    yield
    from django.conf import settings

    shutil.rmtree(settings.SCRATCH, ignore_errors=True)


@pytest.fixture(autouse=True)
def _language_of_the_settings() -> Iterator[None]:
    """A test client's request leaves its language behind in the thread."""
    yield
    from django.utils import translation

    translation.deactivate()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL database of this run, empty at first; services.postgres_database() gives a test one of its own."""
    with services.postgres_database() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis database of this run, empty at first."""
    with services.redis_database() as url:
        yield url
