# make demo: from a fresh clone to masks and a report. make test: everything that must hold. Each sets itself up in .venv.
.DELETE_ON_ERROR:
.PHONY: demo test check bench chaos lock peers clean help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers
# The first interpreter that is new enough; `make PYTHON=/path/to/python demo` chooses another.
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$p && break; done)

help:
	@echo "make demo    scenes, a model, masks and a report in demo/, in a few minutes"
	@echo "make test    lint, types and tests; make check: without the tests"
	@echo "make bench   how fast, how much memory, beside what: twenty minutes on an idle machine"
	@echo "make chaos   faults caused for real, and docs/reliability.md: what each costs; ten minutes"
	@echo "make lock    requirements.lock, anew"
	@echo "make peers   .venv-peers, what the benchmarks measure gigamask against: 6 GB"
	@echo "make clean   what these have made"

demo: $(STAMP)
	$(BIN)/gigamask demo

test: check
	$(BIN)/python -m pytest

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

chaos: $(STAMP)
	$(BIN)/python -m tests.chaos

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "gigamask needs Python 3.12 or newer: install one, or make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

lock:
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python $(BIN)/python --group dev pyproject.toml \
		--no-header --no-annotate --output-file requirements.lock

peers: $(PEERS)/.installed

$(PEERS)/.installed: tests/benchmarks/peers/requirements.txt
	@test -n "$(PYTHON)" || { echo "the peers need Python 3.12 or newer: install one, or make PYTHON=/path/to/python"; exit 2; }
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(PEERS)/bin/uv pip install --quiet --python $(PEERS)/bin/python --requirement $<
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) demo
