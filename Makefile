# Every target sets up what it needs, also on a machine that has seen none of this yet.
#
#   make test ARGS="-k cancel"                        arguments for pytest
#   make test VENV=.venv-old PIN="langgraph==1.2.0"   another environment

PYTHON ?= python3
VENV   ?= .venv
PIN    ?=
ARGS   ?=
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test coverage lint format docs notebooks conformance postgres clean \
	bench faults load peers headlines range

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.with-demo ## an agent under a deadline: with time enough, and without
	$(BIN)/python -m demo $(ARGS)

test: $(VENV)/.with-test postgres ## all tests
	$(BIN)/python -m pytest -n 4 --dist loadgroup $(ARGS)

coverage: $(VENV)/.with-test postgres ## all tests, with the branches they cover
	$(BIN)/python -m pytest -n 4 --dist loadgroup --cov langgraph_deadline \
		--cov-branch --cov-report term-missing:skip-covered --cov-fail-under 95 $(ARGS)

lint: $(VENV)/.with-test $(VENV)/.with-lint ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.with-lint ## put the sources into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.with-demo ## what it costs, side by side with plain LangGraph
	$(BIN)/python -m benchmarks $(ARGS)

faults: $(VENV)/.with-test ## the catalogue of faults, and random ones (5 minutes)
	$(BIN)/python -m benchmarks.faults $(ARGS)

peers: $(VENV)/.with-demo ## the same work and faults under other deadlines (20 minutes)
	$(BIN)/python -m benchmarks.peers $(ARGS)

load: $(VENV)/.with-bench ## crowds with faults, an hour of runs, a web service
	$(BIN)/python -m benchmarks.load $(ARGS)

headlines: $(VENV)/.with-bench ## the headlines of the field, in virtual time
	$(BIN)/python -m benchmarks.headlines $(ARGS)

range: $(VENV)/.with-demo ## the tests on all Pythons, loops and LangGraphs that are supported (40 minutes)
	$(BIN)/python -m benchmarks.range $(ARGS)

docs: $(VENV)/.with-docs ## the site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

conformance: $(VENV)/.with-demo ## LangGraph's own tests against our StateGraph
	$(BIN)/python -m conformance $(ARGS)

notebooks: $(VENV)/.with-test ## execute the notebooks and keep their output
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

clean: ## remove environments and caches
	rm -rf .venv* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The tests resume runs from PostgreSQL, on a cluster that they start themselves: only
# the programs have to be there.
postgres:
	@if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; \
	then :; \
	elif command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || command -v sudo >/dev/null; }; \
	then \
		as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
		$$as_root apt-get update -qq && \
		$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
			--no-install-recommends postgresql >/dev/null; \
	elif [ "$(CI)" = true ]; then echo "PostgreSQL is needed here" >&2; exit 1; \
	else echo "No PostgreSQL found: its tests will be skipped." >&2; fi

# pip first: older ones (23) fail on the metadata of some dependencies.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.with-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]" $(PIN)
	@touch $@
