# Two commands: `make demo` sets everything up in .venv and runs the main job;
# `make test` sets up and runs the tests. Both can be run again.
PYTHON ?= python3
VENV := .venv
# A worker that is done takes over half of what the other has left, so that they end together.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist worksteal
# What tests and library compile to is kept: else each process that a test starts compiles anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types slow real-data clean help

help:  ## what can be asked for
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/'

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (PyTorch and a few small packages; a minute or two) ..."
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "adding the development tools to $(VENV) ..."
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed  ## train four methods at one budget, attack them, write runs/demo/report.html
	@if [ -e runs/demo ]; then n=1; while [ -e runs/demo.$$n ]; do n=$$((n+1)); done; \
	  echo "moving the earlier runs/demo to runs/demo.$$n"; mv runs/demo runs/demo.$$n; fi
	$(VENV)/bin/gratis compare natural fgsm-rs free-8 pgd-7 --data digits --budget 160 --out runs/demo

test: $(VENV)/installed-dev  ## the tests that a developer runs, under three minutes
	@echo "running the tests ..."
	$(PYTEST) -m "not slow and not data"

slow: $(VENV)/installed-dev  ## the tests that take minutes
	$(PYTEST) -m slow

real-data: $(VENV)/installed-dev  ## the tests on real data sets under $$GRATIS_DATA
	$(PYTEST) -m data

lint: $(VENV)/installed-dev  ## style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/installed-dev  ## strict types
	$(VENV)/bin/mypy

clean:  ## remove the environment (runs stay)
	rm -rf $(VENV)
