# make install | viewer | demo | serve | test | test-all | check | chaos | fuzz | bench | docs | format | clean
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11; do $$p -c '' 2>/dev/null && echo $$p && exit; done; echo python3)
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STUDIES ?= demo/studies
PORT ?= 8000
ROUNDS ?= 100
REQUESTS ?= 1000
SEED ?= 1
FORMAT ?= mha nrrd nifti dicom zip seg rtstruct

.PHONY: install install-dev viewer viewer-check demo serve test campaigns test-all check lint types format cov chaos fuzz bench docs openapi lock clean

# A PACS for the demo; the tests also need a browser, and independent readers of DICOM files.
PACS := orthanc orthanc-dicomweb
TOOLS := $(PACS) chromium plastimatch dicom3tools

install: $(VENV)/.runtime $(VENV)/.package viewer
install-dev: $(VENV)/.dev $(VENV)/.package viewer
	@bash tools/system_packages.sh $(TOOLS)

$(PY):
	bash tools/make_venv.sh "$(PYTHON)" $(VENV)

$(VENV)/.runtime: requirements.txt constraints.txt $(wildcard tools/stand_ins/*/*.toml tools/stand_ins/*/*.py) | $(PY)
	@TORCH_INDEX="$(TORCH_INDEX)" bash tools/install_runtime.sh $(PY)
	@touch $@

# The editable package: programs import lib from any folder, and there is an organnet command.
$(VENV)/.package: pyproject.toml $(VENV)/.runtime
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(PIP) install -q -r requirements-dev.txt -c constraints.txt
	@touch $@

# OHIF, the viewer in the browser: downloaded once. OHIF=FILE takes the package from a file, where npm cannot be reached.
viewer: $(VENV)/.runtime
	@$(PY) tools/install_viewer.py $(OHIF)

demo: install
	@bash tools/system_packages.sh $(PACS)
	@$(PY) -m apps.demo --port $(PORT)

serve: install
	$(PY) -m monailabel.main start_server --app . --studies $(STUDIES) --host 127.0.0.1 --port $(PORT)

# Two processes share the tests, file by file, the long ones first (docs/testing.md).
PYTEST := $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# All tests except the campaigns, which take minutes by design.
test: install-dev
	$(PYTEST) -m "not campaign" --budget 10

campaigns: install-dev
	$(PYTEST) -m campaign --budget 25

test-all:
	$(MAKE) test
	$(MAKE) campaigns

lint: install-dev viewer-check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Types and unit tests of the modules in viewer/. The viewer itself needs no Node.js.
viewer-check:
	@if command -v npm >/dev/null; then cd viewer && npm ci --silent && npm run --silent types && npm test --silent; \
	else echo "npm is missing: the modules of the viewer are not checked"; fi

types: install-dev
	$(VENV)/bin/mypy

check: lint types test-all

format: install-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

cov: install-dev
	$(PY) -m pytest --cov=lib --cov-report=term-missing

chaos: install-dev
	$(PY) -m tests.chaos --rounds $(ROUNDS)

fuzz: install-dev
	$(PY) -m tests.fuzz --requests $(REQUESTS) --seed $(SEED) --format $(FORMAT)

bench: install
	$(PY) -m apps.bench $(if $(JSON),--json $(JSON))

openapi: install
	$(PY) -W ignore -m tools.openapi

docs: install-dev
	$(PY) tools/check_links.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lock: install-dev
	(head -1 constraints.txt; $(PIP) freeze --exclude-editable | grep -v " @ " | sort -f) > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) demo logs bin runs .mypy_cache .ruff_cache .pytest_cache .coverage htmlcov site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
