# A fresh clone needs Python 3.11 or newer and make, nothing else: each target makes .venv when it is missing.
#   make study PYTHON=/path/to/python3     another interpreter
#   make test ARGS='tests/orchestrator/test_plan.py'    more arguments to what the target runs

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help study test faults lint types format lock clean .venv

help: ## this list
	@awk -F ':.*## ' '/^[a-z.]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

study: $(INSTALLED) ## the paper's tables 1 and 2 at laptop scale: train, evaluate, track, report
	$(BIN)/ablate run quickstart $(ARGS)

test: $(INSTALLED) ## the tests, without those marked slow
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

faults: $(INSTALLED) ## kills, outages, lost nodes, full disks: the whole fault suite and its table in docs/reliability.md
	$(BIN)/pytest tests/faults -m faults --faults-json docs/reliability.json $(ARGS)
	$(BIN)/python tests/faults/table.py docs/reliability.json docs/reliability.md

lint: $(INSTALLED) ## ruff (rules and formatting) and the contracts on who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED) ## mypy
	$(BIN)/mypy

format: $(INSTALLED) ## rewrite the code as `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What torch itself pins (CUDA libraries, triton) is left to torch, and so is its build (+cpu, +cu130):
# the file has to hold on every platform.
lock: $(INSTALLED) ## write what .venv holds to requirements.lock
	@{ sed -n '/^#/p' requirements.lock; \
	   $(BIN)/pip freeze --all --exclude pip --exclude-editable --local \
	   | grep -vE '^(nvidia-|cuda-|triton=)' | sed 's/+[a-z0-9.]*$$//'; } > .venv/requirements.lock
	@! grep -nE ' @ |://' .venv/requirements.lock || { echo "make: a pin would name a place" >&2; exit 1; }
	@mv .venv/requirements.lock requirements.lock
	@touch $(INSTALLED)

clean: ## remove .venv and caches; results in ./ablations stay
	rm -rf .venv build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

.venv: $(INSTALLED) ## the environment alone

# The stamp is written last, so an interrupted installation goes on at the next call.
$(INSTALLED): pyproject.toml requirements.lock
	@command -v $(PYTHON) > /dev/null || { \
	  echo "make: no '$(PYTHON)' here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: '$(PYTHON)' is $$($(PYTHON) -V 2>&1), needs 3.11 or newer; name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "make: '$(PYTHON)' cannot make virtual environments (it lacks ensurepip); on Debian or Ubuntu:" \
	       "apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv (the first time some minutes and, with CUDA, some gigabytes)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock setuptools
	@$(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock --no-build-isolation -e '.[dev]'
	@touch $@
