"""Fly's Machines API for Python, and the same API on loopback. Knows neither Django nor machinequeue."""
