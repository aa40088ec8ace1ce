"""Crash tests: real processes are killed at the worst moments, and a checker judges from outside what is left."""
