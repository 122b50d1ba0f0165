# Two commands on a fresh machine (Python 3.11+, pip, make): `make quickstart` and `make test`.
#
# Every step is safe to repeat and to interrupt: an install counts only once its stamp is written, the
# data step verifies what is there, and training goes on from its newest complete checkpoint.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Tests at a time, of one thread each: one more than the two cores they are sized for, since many wait for processes.
# In their own order: pytest-xdist would put the files of few but long tests, several processes each, all at the end.
TEST_JOBS ?= 3

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := pyproject.toml .ci/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(VENV)/.onn-installed ## install, obtain the data, train the quickstart model, show its results
	@echo "== quickstart 2/4: data into data/quickstart"
	$(BIN)/onn fetch quickstart --to data/quickstart
	@echo "== quickstart 3/4: training (goes on where an earlier run stopped)"
	$(BIN)/onn fit --config quickstart.yaml --resume
	@echo "== quickstart 4/4: held-out results"
	$(BIN)/onn test --config quickstart.yaml

test: $(VENV)/.onn-tested ## install with the test tools, run the whole test suite
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.onn-tested ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## remove the environment and caches; data/ and runs/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist

# An environment without a working pip is one whose creation was interrupted: it is made again.
# Where the system's Python comes without ensurepip (Debian without python3-venv), virtualenv does it.
define make_environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is older than 3.11: give a newer one, e.g. make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
@$(PIP) --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	{ echo "== no venv module: using virtualenv"; \
	  $(PYTHON) -m pip install --quiet --target $(VENV)-bootstrap virtualenv && \
	  PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV) && rm -rf $(VENV)-bootstrap; }
endef

$(VENV)/.onn-installed: $(PINS)
	@echo "== quickstart 1/4: environment in $(VENV)"
	$(make_environment)
	$(PIP) install --quiet -c .ci/constraints.txt -e .
	@touch $@

$(VENV)/.onn-tested: $(PINS)
	@echo "== environment with test tools in $(VENV)"
	$(make_environment)
	$(PIP) install --quiet -c .ci/constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.onn-installed
