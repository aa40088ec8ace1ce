"""The doctor: each examination on what it really finds."""
