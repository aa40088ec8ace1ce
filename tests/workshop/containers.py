"""Tasks whose code is not ours."""

from machinequeue import container_task

run_python = container_task(image="python:3.13-slim", timeout=10, queue_name="containers")
short = container_task(image="python:3.13-slim", timeout=2, queue_name="containers")
patient = container_task(image="python:3.13-slim", timeout=120, queue_name="containers")
checked = container_task(image="python:3.13-slim", timeout=10, check=True, max_attempts=2, queue_name="containers")
unknown = container_task(image="nowhere:1", timeout=10, queue_name="containers")
