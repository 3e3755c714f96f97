# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: two that wait for each other are slow on shared machines.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-lowest test-all lint docs

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

# Workers are processes of one thread each, at most four since each of them imports torch. A worker
# takes a run of neighbouring tests, so that fixtures of a module are mostly made once; one that is
# done takes half of what is left to the slowest.
PARALLEL := -n auto --maxprocesses=4 --dist=worksteal

test: lint
	$(BIN)/python -m pytest $(PARALLEL) --durations=10
	$(MAKE) test-lowest

# The oldest versions that pyproject.toml admits, put before those of .venv; torch, which is large,
# stays. What old versions use of newer packages, and is deprecated there, is not ours to mend.
LOWEST := build/lowest

$(LOWEST)/installed: pyproject.toml tests/packaging/lowest.py
	rm -rf $(LOWEST)
	mkdir -p $(LOWEST)
	$(BIN)/python tests/packaging/lowest.py > $(LOWEST)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --target $(LOWEST) --requirement $(LOWEST)/requirements.txt
	touch $@

test-lowest: setup $(LOWEST)/installed
	PYTHONPATH=$(LOWEST) $(BIN)/python -m pytest $(PARALLEL) -W ignore::DeprecationWarning tests/records tests/learning/test_artefact.py tests/learning/test_forest.py tests/learning/test_selector.py tests/cli/test_repair.py tests/test_face.py

# One after the other: some of the slow tests measure time and memory.
test-all: lint
	$(BIN)/python -m pip install --quiet --editable '.[dev,distributed]'
	$(BIN)/python -m pytest -m 'slow or not slow' --durations=20

# Warnings are errors; the site is in build/site, and needs no server.
docs: setup
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	$(BIN)/mkdocs build --strict
