# Two commands for a fresh clone: `make train` and `make test`. Both make a virtual environment in
# .venv first; PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test test-slow lint types docs check-site figures build clean

train: $(VENV)/installed
	$(BIN)/cifar-resnet train $(ARGS)

test: lint types $(VENV)/installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed-dev
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check-site: docs
	$(BIN)/python docs/check_site.py site $(ARGS)

figures: $(VENV)/installed
	$(BIN)/python docs/make_figures.py $(ARGS)

build: $(VENV)/installed-dev
	$(BIN)/python -m build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) site dist
