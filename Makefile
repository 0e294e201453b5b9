# Every target makes the .venv it needs; a change of pyproject.toml or constraints.txt remakes it.
# Options: PYTHON=python3.12, and PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" where pip would fetch CUDA.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: run test lint types docs clean
.DEFAULT_GOAL := run

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

run: $(STAMP)
	$(BIN)/realrl train rl100 --run runs/main --resume

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python docs/check_links.py README.md CONTRIBUTING.md docs

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
