# Every target sets itself up; `make demo` on a fresh clone is enough. Needs Python 3.11 and make, nothing else.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3.11
UV := uv==0.13.8
BIN := .venv/bin
PORT ?= 8000

# Histories and stores live inside the project unless said otherwise; Dagster wants an absolute path.
DAGSTER_HOME ?= .dagster
BENTOML_HOME ?= .bentoml
override DAGSTER_HOME := $(abspath $(DAGSTER_HOME))
override BENTOML_HOME := $(abspath $(BENTOML_HOME))
export DAGSTER_HOME BENTOML_HOME
# Dagster's telemetry is off in dagster.yaml, BentoML's here.
export BENTOML_DO_NOT_TRACK := True
# No bars of the model library between the lines of `make demo`.
export HF_HUB_DISABLE_PROGRESS_BARS := 1
# Matplotlib's font cache, so that nothing is written outside the project.
export MPLCONFIGDIR := $(abspath .venv/matplotlib)

READY := .venv/.ready
HOME_READY := $(DAGSTER_HOME)/dagster.yaml

.PHONY: help demo data test dev serve stale refresh bench lint

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) $(HOME_READY) ## the whole chain on simulated data, ending with the table of figures
	@$(BIN)/python -m assets.openpack.demo

data: $(READY) $(HOME_READY) ## everything up to shards for the source and view that the variables name
	@$(BIN)/python -m assets.openpack.data

test: $(READY) ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

dev: $(READY) $(HOME_READY) ## Dagster's UI on 127.0.0.1:3000
	$(BIN)/dagster dev --host 127.0.0.1 --port 3000

serve: $(READY) ## the service on 127.0.0.1:8000, or at PORT
	$(BIN)/bentoml serve service:PackagingService --host 127.0.0.1 --port $(PORT)

stale: $(READY) $(HOME_READY) ## what is stale and why
	@$(BIN)/python -m assets.stale

refresh: $(READY) $(HOME_READY) ## materialises what is stale and nothing else
	@$(BIN)/python -m assets.refresh

bench: $(READY) ## benchmarks into bench/results.json
	$(BIN)/python -m bench

lint: $(READY) ## formatting, lint, types and import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# Exact versions, without a solver, which would bring back openpack-toolkit's outdated pins.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

$(HOME_READY): dagster.yaml
	mkdir -p $(@D)
	cp $< $@
