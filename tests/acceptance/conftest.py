"""The world of the integration tests, for the journeys, and a bucket."""

from tests.backups.conftest import bucket
from tests.integration.conftest import empty_shop, tables

__all__ = ["bucket", "empty_shop", "tables"]
