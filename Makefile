# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: two that wait for each other are slow on shared machines.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-all lint docs

setup: .venv/installed

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/saliency-selector demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --durations=10

test-all: lint
	$(BIN)/python -m pip install --quiet --editable '.[dev,distributed]'
	$(BIN)/python -m pytest -m 'slow or not slow' --durations=20

# Warnings are errors; the site is in build/site, and needs no server.
docs: setup
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	$(BIN)/mkdocs build --strict
