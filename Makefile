# Every target first sets up .venv; a second call finds it done.
SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.installed
PYTHON ?=
# .venv/bin on PATH: deepspeed, torchrun and ninja are there.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: setup demo test test-slow test-docs test-browser browser lint docs measured notebooks sbom release-check bench
.DEFAULT_GOAL := setup

setup: $(STAMP)

demo: $(STAMP)
	$(RUN) regionroute demo

# One process per core, whole files each: fixtures of a file are made once.
test: $(STAMP)
	$(RUN) pytest -n auto --maxprocesses 8 --dist loadfile -m "not slow"

test-slow: $(STAMP)
	$(RUN) pytest -m slow

# Tutorials that train, and the notebooks; other tutorials are part of `test`.
test-docs: $(STAMP)
	$(RUN) pytest -n 2 --dist load -m slow tests/docs

# The studio as a server, and in Chromium; that skips where there is none and it cannot be installed.
test-browser: $(STAMP) browser
	$(RUN) pytest -n 2 --dist loadfile -m slow tests/regionroute/studio

browser:
	@.ci/browser

lint: $(STAMP)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) codespell
	$(RUN) hadolint docker/Dockerfile.cpu docker/Dockerfile.cuda

# The site, offline, in docs/_build/html; a warning is an error.
docs: $(STAMP)
	$(RUN) sphinx-build -q -W --keep-going -b html docs docs/_build/html

# The tables of docs/measured from bench/results.
measured: $(STAMP)
	$(RUN) python docs/_ext/measured.py

# The notebooks' outputs, on nano; minutes.
notebooks: $(STAMP)
	$(RUN) python docs/_ext/notebooks.py

# Dependencies and everything shipped, with licences: dist/sbom.cdx.json.
sbom: $(STAMP)
	$(RUN) python docs/_ext/licences.py

# Wheel and sdist of the last commit, each installed and used in a fresh environment; minutes.
release-check: $(STAMP)
	@.ci/release

bench: $(STAMP)
	@set -e; for script in bench/[!_]*.py; do \
	  [ -e "$$script" ] || { echo "no benchmarks in bench/"; continue; }; \
	  echo "== $$script"; $(RUN) python "$$script"; \
	done

# uv installs in seconds what takes pip minutes; pip, however old, only has to install uv.
$(STAMP): pyproject.toml setup.py constraints.txt
	@set -e; \
	new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "$$new_enough" 2>/dev/null || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  found=""; \
	  for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	    if "$$candidate" -c "$$new_enough" 2>/dev/null; then found="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: Python 3.11 or newer is required, found $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1);" \
	      "install it, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  "$$found" -m venv --clear .venv || { \
	    echo "error: $$found cannot create a virtual environment;" \
	      "on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	fi; \
	echo "setting up .venv with $$($(BIN)/python --version)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	touch $@
