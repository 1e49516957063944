# Surefoot's targets. Each makes its own virtual environment (.venv) and installs what it needs, once for a state of
# pyproject.toml and constraints.txt.

PYTHON ?= python3
VENV ?= .venv
# further options for pip, for example an --extra-index-url or --find-links with CPU builds of torch
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n auto --dist loadfile
OUT ?= runs/quickstart

BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
# Test processes share the cores, so each has one thread; sums then also come out the same on every machine.
ONE_THREAD := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint bench soak browser configs clean
.DELETE_ON_ERROR:

help:
	@echo "make quickstart   the whole loop on a real model: SFT, reward model, PPO, report (into $(OUT))"
	@echo "make test         lint, and every test but those of make soak and make browser"
	@echo "make lint         ruff and mypy"
	@echo "make bench        the measurements under benchmarks/: many hours; studies of many runs go on where they stopped"
	@echo "make soak         the long trials: all kills, all seeds"
	@echo "make browser      the tests that open pages in Chromium"
	@echo "make configs      write configs/*.yaml anew from the schema"
	@echo "make clean        remove the virtual environment and caches; run folders stay"
	@echo
	@echo "PYTHON=$(PYTHON)  VENV=$(VENV)  OUT=$(OUT)"
	@echo "PIP_FLAGS='...'   options for pip; name an index with CPU builds of torch to download no CUDA libraries"
	@echo "PYTEST_FLAGS='$(PYTEST_FLAGS)'"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Surefoot needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev,demo]'
	touch $@ $(VENV)/.installed-demo

quickstart: $(VENV)/.installed-demo
	$(BIN)/surefoot demo --out $(OUT)

test: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -q $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy

# Status 2 of a script: it needs what is not installed, and has said so in a line.
bench: $(VENV)/.installed-dev
	@for script in benchmarks/*.py; do \
		[ -e "$$script" ] || { echo "no benchmarks in this checkout"; exit 1; }; \
		echo "== $$script"; $(BIN)/python "$$script" || [ $$? -eq 2 ] || exit 1; \
	done

soak: $(VENV)/.installed-dev
	$(ONE_THREAD) SUREFOOT_SOAK=1 $(BIN)/python -m pytest -q $(PYTEST_FLAGS) -m "not browser"

browser: $(VENV)/.installed-dev
	$(INSTALL) -e '.[browser]'
	$(ONE_THREAD) $(BIN)/python -m pytest -q -m browser tests/browser

configs: $(VENV)/.installed-dev
	$(BIN)/python -m surefoot.config_examples configs

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis mutants
