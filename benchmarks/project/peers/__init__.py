"""The same no-op as tasks of the peers."""
