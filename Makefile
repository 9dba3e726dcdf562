# You need Python 3.11 or newer; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test check docs docs-links bench clean

demo: .venv/installed ## simulated radiographs: draw, train, evaluate, report; offline after the installation
	$(BIN)/pneumoscope demo --out runs/demo --overwrite

test: check ## style, types and all tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --quiet --numprocesses auto --dist worksteal

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-dev ## the web site of the documentation: docs/_build/html
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --fresh-env --write-all -b html docs docs/_build/html

docs-links: .venv/installed-dev ## links to other sites, too; needs the internet
	$(BIN)/sphinx-build --quiet -b linkcheck docs docs/_build/links

bench: .venv/installed-dev ## speed, compared with the last committed measurements; half an hour, on ../shared/data
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf .venv runs docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(INSTALL) ".[train]"
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) ".[train,dicom,serve,ray,docs,dev]"
	touch $@
