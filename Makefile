# Every target builds what it needs; a second run finds it built. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.PHONY: help demo test check format mutants bench soak clean constraints chromium

VENV ?= .venv
PYTHON_VERSION ?= 3.13
CONSTRAINTS ?= constraints.txt
EXTRAS ?= backups,demo,health,metrics,postgres,redis
GROUP ?= dev
PYTHON := $(VENV)/bin/python
ARGS ?=
MINUTES ?= 10
# Tests mostly wait for processes, so there may be more workers than cores. A file's tests stay together,
# and the slow files come first (tests/conftest.py).
WORKERS ?= 4

# The tests start a thousand processes: each would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

# A `uv` on PATH may be a shim with nothing behind it, so it is asked for its version before it is trusted.
UV := $(shell if uv --version >/dev/null 2>&1; then command -v uv; else echo .tools/bin/uv; fi)
INSTALL = $(UV) pip install --python $(PYTHON) --constraint $(CONSTRAINTS)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  ARGS="..." is handed on: make demo ARGS=--serve, make test ARGS="-k receipt -x"'

demo: $(VENV)/.demo-installed ## run the store: 50 receipts and a sales report, each on a machine (ARGS=--serve keeps the site up)
	$(PYTHON) -m demo_site.demo $(ARGS)

test: $(VENV)/.test-installed chromium ## run the tests; PostgreSQL, Redis and Chromium are found, started or installed
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.test-installed ## lint, format, types, import contracts, missing migrations
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(PYTHON) manage.py makemigrations --check --dry-run

format: $(VENV)/.test-installed ## let ruff mend and format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

mutants: $(VENV)/.test-installed ## break the code on purpose, in many ways, and see that the tests catch each
	$(PYTHON) -m tests.mutants $(ARGS)

bench: $(VENV)/.bench-installed ## measure, as ratios to what cannot be beaten
	$(PYTHON) -m benchmarks $(ARGS)

soak: $(VENV)/.test-installed ## kill at random for MINUTES=10, and see that nothing is lost (ARGS="--seed 7")
	$(PYTHON) -m tests.crash.soak --minutes $(MINUTES) $(ARGS)

clean: ## remove what the other targets made
	rm -rf .tools .venv .venv-3.12 .machinequeue .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache demo.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

constraints: $(UV) ## pin the newest dependencies again
	$(UV) pip compile pyproject.toml $(COMPILE) --universal --python-version 3.12 \
	    $(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) --group dev --group bench --output-file constraints.txt
	$(UV) pip compile pyproject.toml $(COMPILE) --python-version 3.12 \
	    $(foreach extra,$(subst $(comma), ,$(EXTRAS)) django52,--extra $(extra)) --group test --output-file constraints-django52.txt

comma := ,
COMPILE := --quiet --upgrade --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package machinequeue

# --- what the targets stand on ---------------------------------------------------------------------------------------

$(VENV)/.demo-installed: pyproject.toml $(CONSTRAINTS) | $(PYTHON)
	$(INSTALL) --editable '.[demo,postgres,redis]'
	@touch $@

$(VENV)/.test-installed: pyproject.toml $(CONSTRAINTS) | $(PYTHON)
	$(INSTALL) --editable '.[$(EXTRAS)]' --group $(GROUP)
	@touch $@ $(VENV)/.demo-installed

$(VENV)/.bench-installed: pyproject.toml $(CONSTRAINTS) | $(PYTHON)
	$(INSTALL) --editable '.[emulator,postgres,redis]' --group bench
	@touch $@

# Python is taken from this machine if one fits; uv downloads one only where none does.
$(PYTHON): | $(UV)
	@for wanted in "$(PYTHON_VERSION)" ">=3.12"; do \
	    if python=$$($(UV) python find --system --no-project --no-python-downloads "$$wanted" 2>/dev/null); then break; fi; \
	done; \
	$(UV) venv --quiet --allow-existing --python "$${python:-$(PYTHON_VERSION)}" $(VENV) \
	    || { echo "machinequeue needs Python 3.12 or newer, and none was found or could be downloaded." >&2; exit 1; }

# Any Python 3 gets uv; `python3` may be a shim for a version that is not there, and a Python may come without venv or pip.
.tools/bin/uv:
	@for python in python3 /usr/bin/python3 /usr/local/bin/python3; do \
	    "$$python" -m venv .tools >/dev/null 2>&1 || continue; \
	    .tools/bin/python -m pip install --quiet --disable-pip-version-check uv && exit 0; \
	done; \
	rm -rf .tools; \
	for python in python3 /usr/bin/python3 /usr/local/bin/python3; do \
	    "$$python" -m pip install --quiet --disable-pip-version-check --target .tools uv >/dev/null 2>&1 && exit 0; \
	done; \
	rm -rf .tools; \
	echo "uv could not be installed: it needs python3 with venv or pip (Debian: apt-get install python3-venv)." >&2; exit 1

chromium:
	@if command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Chromium for the tests that drive a page"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else \
	    echo "Chromium is missing: the tests that drive a page will fail. Install the package chromium." >&2; \
	fi
