"""The world of the integration tests, for the journeys."""

from tests.integration.conftest import empty_shop, tables

__all__ = ["empty_shop", "tables"]
