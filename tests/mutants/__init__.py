"""Deliberate breakages of what the guarantees rest on, and the tests that must catch each: `make mutants`."""
