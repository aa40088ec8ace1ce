"""What machinequeue costs, as ratios to what cannot be beaten and to peers: `python -m benchmarks`.

Everything runs on this computer: PostgreSQL, Redis, a Django project in `project/`, its dispatcher, the emulator of
the Machines API, and workers of Procrastinate and Celery. Only ratios of one run mean something.
"""
