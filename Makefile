# Everything a newcomer needs: `make demo` and `make test` set up what they use by themselves. `make help` lists the rest.
PYTHON ?= python3.11
# How many processes run tests side by side: more than processors, as many tests wait rather than work.
PROCESSES ?= 3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

.DEFAULT_GOAL := help
.PHONY: help setup demo test accuracy storm check lint types imports format diagrams build smoke clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: $(STAMP) ## make .venv with toque and everything for its tests

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is needed (Debian: apt-get install python3.11 python3.11-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $(STAMP)

demo: setup ## replay recorded SIP calls and watch the callbacks arrive
	@$(BIN)/toque demo $(DEMO)

test: setup ## all tests; those whose programs are missing skip and say so
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile $(TESTS)

accuracy: setup ## play every recording of a real switch and write docs/accuracy.md
	$(BIN)/python tools/accuracy.py

storm: setup ## break the server on purpose for 20 minutes and count what is lost: STORM="--only kill --kills 300", "--help"
	$(BIN)/python -m tests.faults.storm $(STORM)

check: lint types imports ## everything that reads the code without running it

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## import-linter: the rooms and which way their arrows point
	$(BIN)/lint-imports

format: setup ## put the code into ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: setup ## the wheel and the source distribution, in dist/
	rm -rf dist
	$(BIN)/python -m build --quiet

smoke: build ## install the wheel in a fresh environment and run the demo from it
	rm -rf build/smoke && $(PYTHON) -m venv build/smoke
	build/smoke/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd build/smoke && bin/toque --version && bin/toque demo --speed 4 --json

clean: ## remove what was made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
