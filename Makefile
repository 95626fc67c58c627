# hasten: what a developer or a newcomer types.  `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready-$(shell cat pyproject.toml constraints.txt Makefile | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick check bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## an isolated .venv with everything pinned by constraints.txt

# torch first and by its exact version: a dependency's open range would fetch a far larger build.
$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hasten needs Python 3.11 or newer; run: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	@rm -f .venv/.ready-*
	@touch $@

demo: $(READY)  ## raw text to a trained, tested model with a report; make demo ARGS='data.sources=[my/folder]'
	$(BIN)/hasten journey demo $(ARGS)

test: $(READY)  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

quick: $(READY)  ## the tests that take a moment each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## the programs that take minutes each; results go to bench/results/
	$(BIN)/python bench/kill.py --save bench/results/kill.json
	$(BIN)/python bench/checkpoint.py --save bench/results/checkpoint.json
	$(BIN)/python bench/generate.py --save bench/results/generate.json
	$(BIN)/python bench/prepare_memory.py --save bench/results/prepare-memory.json
	$(BIN)/python bench/demo.py --save bench/results/demo.json
	$(BIN)/python bench/readme.py

clean:  ## forget the environment and caches; runs/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
