# `make demo` and `make test` need nothing but make and Python 3.11 to 3.13. Everything lands in .venv.
# make PYTHON=python3.12 …            another interpreter
# make PIP_ARGS='--index-url URL' …   more arguments for every `pip install`
# make PYTEST_ARGS='tests/ops -x' …   more arguments for pytest

PYTHON ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# --no-compile: what is imported gets compiled then, the rest never. The build tools are pinned too, hence no isolation.
INSTALL := $(BIN)/python -m pip install --no-compile --no-build-isolation -c constraints.txt $(PIP_ARGS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.NOTPARALLEL:
.PHONY: help demo test lint clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile
	@sed -n 's/^# \(make [A-Z].*\)/\1/p' Makefile

demo: $(VENV)/.demo  ## train a small spiking Transformer on real digits beside its ANN twin; runs/demo/report.html
	@$(BIN)/s2tdpt demo

test: $(VENV)/.test  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(WORKERS) tests/kernels)

lint: $(VENV)/.lint  ## ruff check, ruff format --check, pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

clean:  ## remove .venv, build outputs and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks results docs -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.made:
	@old_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if $(BIN)/python -c "$$old_enough" 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1; then touch $@; exit; fi; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		$$python -c "$$old_enough" 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "error: no Python >= 3.11 among: $(or $(PYTHON),python3 python3.13 python3.12 python3.11); try: make PYTHON=/path/to/python3.12 …" >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$($$python -V)"; \
	$$python -m venv --clear $(VENV) || { echo "error: $$python cannot make $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.built-with: $(VENV)/.made constraints.txt
	$(INSTALL) hatchling editables
	@touch $@

$(VENV)/.demo: $(VENV)/.built-with pyproject.toml
	$(INSTALL) -e '.[digits,explain]'
	@touch $@

# SpikingJelly, an oracle of the tests, asks for torchvision, which cannot be imported beside torch's CPU build: no
# dependencies of its own; the extra `test` lists those it needs.
$(VENV)/.test: $(VENV)/.built-with pyproject.toml
	$(INSTALL) -e '.[test]'
	$(INSTALL) --no-deps spikingjelly
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(INSTALL) -e '.[dev]'
	@touch $@
