# What a person types. Everything is installed by plain pip into .venv, in the versions of constraints.txt.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test nightly lock clean

PYTHON ?= python3
WORKERS ?= 2
PIP := .venv/bin/python -m pip --disable-pip-version-check
# A new stamp, and so a new installation, whenever what is to be installed, the interpreter or the folder changes.
STAMP := .venv/.done-$(shell { cat pyproject.toml constraints.txt; $(PYTHON) --version; pwd; } | cksum | cut -d' ' -f1)

help:  ## list these
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

setup: $(STAMP)  ## make .venv: some minutes and 2 GB the first time (more with a GPU), then nothing

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "facetclip needs Python 3.11 or newer; try make setup PYTHON=python3.11")'
	rm -f .venv/.done-*
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	$(PIP) install -q -c constraints.txt -e '.[cluster]' || echo 'DeepSpeed could not be built here: everything works but its three configurations.'
	$(PIP) check
	touch $@

demo: setup  ## the whole system on a rendered catalog, in demo/
	.venv/bin/facetclip demo --out demo

test: setup  ## lint, format, types and all quick tests
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright
	OMP_NUM_THREADS=1 .venv/bin/pytest -n $(WORKERS) --dist loadgroup --timeout 300 -m 'not nightly'

nightly: setup  ## the long tests
	OMP_NUM_THREADS=1 .venv/bin/pytest --timeout 3600 -m nightly

lock:  ## write constraints.txt anew from the newest versions that fit pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(PIP) install -q -e '.[dev,cluster]'
	{ head -1 constraints.txt; $(PIP) freeze --exclude-editable | sed -n 's/^\([A-Za-z0-9._-]*==[A-Za-z0-9.]*\).*/\1/p' | grep -v '^nvidia-\|^triton=\|^cuda-'; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## remove what these commands made
	rm -rf .venv demo build .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
