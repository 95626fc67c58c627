# hasten: what a developer or a newcomer types.  `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready-$(shell cat pyproject.toml constraints.txt Makefile | cksum | cut -d' ' -f1)
PEERS := .venv-peers/.ready-$(shell cat bench/requirements.txt constraints.txt | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick check models bench bench-tasks bench-peers clean

# Where `make models` puts trained models of others, and where tests look for them.
export HASTEN_MODELS ?= $(CURDIR)/runs/models

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

models: $(READY)  ## three small trained models (240 MB to fetch), which some tests use where they are
	$(BIN)/python bench/models.py

bench: $(READY) $(PEERS) models  ## the programs that take minutes each; results go to bench/results/
	$(BIN)/python bench/compare.py --shape S --peers-allocator --minutes 20 --save bench/results/compare-s.json
	$(BIN)/python bench/compare.py --shape M --save bench/results/compare-m.json
	$(BIN)/python bench/time_to_loss.py --save bench/results/time-to-loss.json
	$(BIN)/python bench/kill.py --save bench/results/kill.json
	$(BIN)/python bench/checkpoint.py --save bench/results/checkpoint.json
	$(BIN)/python bench/generate.py --save bench/results/generate.json
	$(BIN)/python bench/prepare_memory.py --save bench/results/prepare-memory.json
	$(BIN)/python bench/demo.py --save bench/results/demo.json
	$(BIN)/python bench/kinds.py --save bench/results/kinds.json
	$(BIN)/python bench/interop.py --save bench/results/interop.json
	$(BIN)/python bench/gguf_both_ways.py --save bench/results/gguf.json
	$(BIN)/python bench/parity.py --save bench/results/parity.json
	$(BIN)/python bench/two_processes.py --save bench/results/two-processes.json
	$(BIN)/python bench/kill_parallel.py --save bench/results/kill-parallel.json
	$(BIN)/python bench/planner_here.py --save bench/results/planner-here.json
	test ! -d ../shared/data || $(BIN)/python bench/translate.py --save bench/results/translate.json
	$(BIN)/python bench/readme.py
	$(BIN)/python bench/benchmarks.py

bench-tasks: $(READY) $(PEERS) models  ## fine-tuning on ../shared/data, by the recipes and by others; half a day
	for task in $$($(BIN)/python bench/tasks.py --list | cut -d' ' -f1); do \
	  $(BIN)/python bench/tasks.py $$task --save bench/results/tasks || exit 1; done
	$(BIN)/python bench/task_peers.py --save bench/results/task-peers.json
	$(BIN)/python bench/benchmarks.py

bench-peers: $(PEERS)  ## the libraries that hasten is compared with, in .venv-peers

# The same torch for all, first and by its exact version; llama.cpp is built here, which takes ten minutes.
$(PEERS):
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $(shell grep '^torch==' constraints.txt)
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $(shell grep '^torch==' constraints.txt) \
	  -r bench/requirements.txt
	@rm -f .venv-peers/.ready-*
	@touch $@

clean:  ## forget the environment and caches; runs/ stays
	rm -rf .venv .venv-peers .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
