# Every target sets up what it needs first: a virtual environment in .venv with the versions of constraints.txt.
# A second call finds the stamp files and starts at once.

# The first of these that is Python 3.11 or newer.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python; do \
	"$$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo "$$python" && break; done)
# Options for installing torch alone, for example another package index; see docs/troubleshooting.md.
TORCH_OPTIONS ?=
# Where the quickstart leaves its run.
OUT ?= runs/quickstart
# More arguments for pytest: make test ARGS="tests/mixing -x".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq -c constraints.txt
# Tests, examples and documentation never ask the network.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup quickstart test check lint format docs serve-docs bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.ready-core ## the package and what it needs, in .venv

quickstart: $(VENV)/.ready-core ## adapt the embedded base to six tasks at once, with before and after
	$(BIN)/multitune quickstart --out "$(OUT)"

# One thread: the models of the tests are so small that handing work between threads costs more than the work.
# Two processes instead, each with whole files at a time: what a file builds once stays with it.
test: $(VENV)/.ready-test ## the whole test suite
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

check: lint docs ## lint, types, floors of the house, documentation

lint: $(VENV)/.ready-check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready-check ## let ruff sort imports and lay out the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.ready-check ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

serve-docs: $(VENV)/.ready-check ## the documentation at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

bench: $(VENV)/.ready-bench ## throughput against trl and padded training, measured in one run
	$(OFFLINE) $(BIN)/python benchmarks/sft_throughput.py $(ARGS)

# torch goes first and alone: a later requirement that it satisfies then installs nothing more.
$(VENV)/.ready-core: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "multitune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH_OPTIONS) torch==2.13.0
	@$(PIP) --no-build-isolation -e .
	@touch $@

EXTRAS_test := offline,ray,test
EXTRAS_check := dev,docs
EXTRAS_bench := benchmark
$(VENV)/.ready-%: $(VENV)/.ready-core
	@echo "Installing the extras $(EXTRAS_$*)"
	@$(PIP) --no-build-isolation -e ".[$(EXTRAS_$*)]"
	@touch $@
