.DEFAULT_GOAL := help
# Its job control (set -m) keeps Ctrl-C for the demo, which then ends with 0.
SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TOOLS := $(VENV)/tools
ENGINE := deploy/requirements-engine.txt deploy/requirements-demo.txt
PEERS := $(VENV)/peers/ready
STREAMS := $(VENV)/kafka_streams/ready
CORE := $(VENV)/core

.PHONY: help demo stack core test test-long drill faults-ci faults soak fuzz lint files rules-test dashboards-check screenshots kafka \
	bench bench-quick bench-growth bench-latency bench-recovery bench-leads bench-changelog bench-exposition \
	bench-small bench-rows bench-wide lock clean

help: ## What there is to do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

demo: $(READY) ## See it work: embedded broker, worker, real data, live floor (ARGS="--once --json")
	@! command -v cargo >/dev/null || $(BIN)/python deploy/compile.py --optional
	@[ ! -t 0 ] || set -m; $(BIN)/callfunnel demo $(ARGS); exit $$?

core: $(TOOLS) ## Build the core in Rust (cargo): a worker takes less than half the CPU
	@$(BIN)/python deploy/compile.py

test: $(CORE) ## All tests; those against Apache Kafka where Java 17 and Maven are there (ARGS="-k name")
	@$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

test-long: $(CORE) ## Hours of chance: 4,000 examples of each property, 200,000 schedules of the model
	@HYPOTHESIS_PROFILE=long FUNNEL_MODEL_SCHEDULES=200000 $(BIN)/python -m pytest -n 2 --dist worksteal --timeout 0 \
		tests/property tests/model $(ARGS)

faults-ci: $(CORE) ## Faults on Apache Kafka, the short set (PLAN="kills" for one, ARGS="--seed 7")
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m faults $(or $(PLAN),ci) $(ARGS)

faults: $(CORE) ## Faults on Apache Kafka, all of them and long (PLAN="kills zombies", ARGS="--json FILE")
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m faults $(or $(PLAN),all) --full $(ARGS)

fuzz: $(CORE) ## The core's decoders on inputs that libFuzzer makes, a minute each (C++; ARGS="--seconds 600 record")
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m fuzz $(ARGS)

soak: $(CORE) ## A worker under a steady load for half an hour: memory, descriptors, threads
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m faults soak --full $(ARGS)

lint: $(TOOLS) ## Style, types, and the direction of imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

files: $(TOOLS) ## Write what is made of the declarations: the contract's documents, the dashboards
	@$(BIN)/callfunnel schema --write schemas && $(BIN)/python -m grafana.build

rules-test: $(TOOLS) ## Rules and alerts, with promtool, amtool and Alertmanager
	@FUNNEL_REQUIRE_PROMTOOL=1 $(BIN)/python -m pytest tests/contract/test_rules.py \
		tests/contract/test_healthy_floor.py $(ARGS)

dashboards-check: $(TOOLS) ## The dashboards: mistakes, and every expression run by a real Prometheus
	@FUNNEL_TEST_PROMETHEUS=$${FUNNEL_TEST_PROMETHEUS:-required} $(BIN)/python -m pytest \
		tests/contract/test_dashboards.py tests/e2e/test_dashboards.py $(ARGS)

drill: $(TOOLS) ## Incidents, from the event that is missing to the message that says so (Prometheus, Alertmanager)
	@FUNNEL_DRILL=1 FUNNEL_TEST_PROMETHEUS=$${FUNNEL_TEST_PROMETHEUS:-required} $(BIN)/python -m pytest \
		tests/e2e/test_drill.py $(ARGS)

stack: $(READY) ## Kafka, a worker, Prometheus, Alertmanager and a live floor, without Docker, until Ctrl-C
	@[ ! -t 0 ] || set -m; $(BIN)/python deploy/stack.py $(ARGS); exit $$?

screenshots: $(TOOLS) ## The pictures of the README, taken anew of a floor that runs (Chromium)
	@cd tests && ../$(BIN)/python -m e2e.screenshots

kafka: $(READY) ## Apache Kafka on loopback, without Docker, until Ctrl-C (ARGS="--port 9092")
	@$(BIN)/python deploy/kafka/kraft.py run $(ARGS)

bench: $(CORE) $(PEERS) $(STREAMS) ## CPU, rate and memory of callfunnel and its peers, in one run (ARGS="--json FILE")
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m bench $(ARGS)

bench-quick: $(CORE) ## The same of callfunnel and the bare loop alone, within a minute
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m bench --quick $(ARGS)

bench-growth: $(CORE) $(VENV)/plots ## How cost grows with leads, agents, segments, workers and batches, as a table and a picture
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m bench.growth $(ARGS)

bench-latency bench-recovery bench-leads bench-changelog bench-exposition bench-small bench-rows bench-wide: bench-%: $(CORE)
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m bench.$* $(ARGS)

PIN := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url -q
lock: $(READY) ## Pin what pyproject.toml asks for, with hashes: all of it, the engine alone, what a clone adds
	@$(BIN)/pip install -q uv && $(BIN)/$(PIN) pyproject.toml --extra engine --group dev -o deploy/requirements.txt
	@$(BIN)/$(PIN) pyproject.toml --extra engine -c deploy/requirements.txt --no-annotate -o deploy/requirements-engine.txt
	@$(BIN)/$(PIN) --group demo -c deploy/requirements.txt --no-annotate -o deploy/requirements-demo.txt

$(VENV)/plots: $(READY)
	@$(BIN)/pip install -q --disable-pip-version-check matplotlib==3.11.2 && touch $@

clean: ## Remove the environment and what tools left behind
	@rm -rf $(VENV) streams/_core*.so dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml $(ENGINE)
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here; name a Python 3.11 or newer: make PYTHON=python3.11 …" >&2; exit 64; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)' || \
		{ echo "callfunnel needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another one: make PYTHON=python3.11 …" >&2; exit 64; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make environments: install its venv module (Debian: apt-get install python3-venv)." >&2; exit 69; }
	@echo "Setting up $(VENV) …" >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python deploy/install.py $(ENGINE)
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

$(TOOLS): deploy/requirements.txt $(READY)
	@echo "Adding the tools of development to $(VENV) …" >&2
	@$(BIN)/python deploy/install.py deploy/requirements.txt && touch $@

$(CORE): $(wildcard streams/core/Cargo.* streams/core/*.rs streams/core/src/*.rs) deploy/compile.py | $(TOOLS)
	@$(BIN)/python deploy/compile.py --optional && touch $@

$(PEERS): tests/bench/peers.txt | $(READY)
	@echo "Setting up $(VENV)/peers …" >&2
	@$(PYTHON) -m venv --clear $(VENV)/peers
	@$(VENV)/peers/bin/pip install -q --disable-pip-version-check -r tests/bench/peers.txt && touch $(PEERS)

$(STREAMS): tests/bench/kafka_streams/pom.xml $(wildcard tests/bench/kafka_streams/*.java) | $(READY)
	@echo "Setting up $(VENV)/kafka_streams …" >&2
	@rm -f $@; mvn --quiet --batch-mode --strict-checksums -f $< compiler:compile dependency:copy-dependencies >&2 && touch $@ || \
		echo "Kafka Streams is not built: it takes a JDK 17 and Maven, which fetches 95 MB once." >&2
