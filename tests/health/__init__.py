"""Health and metrics: every failure really made."""
