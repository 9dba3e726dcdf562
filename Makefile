# Python 3.11 or newer is all that has to be there; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test check bench clean

demo: .venv/installed ## the whole road on simulated radiographs, offline
	$(BIN)/pneumoscope demo --out runs/demo --overwrite

test: check ## style, types and all tests
	$(BIN)/pytest --quiet

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed-dev ## all figures of speed beside those committed last; half an hour, on ../shared/data
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(INSTALL) ".[train]"
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) ".[train,serve,dev]"
	touch $@
