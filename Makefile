# Every verb does its own set-up; a second run rebuilds nothing. `make help` lists them.
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# The order of the checks is the order of need. An $(error) is the one line that make prints.
missing = $(shell .ci/prerequisites '$(PYTHON)')
need = $(if $(missing),$(error $(missing)),@:)

missing_java = $(shell .ci/prerequisites '$(PYTHON)' java)
need_java = $(if $(missing_java),$(error $(missing_java)),@:)

PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --require-hashes
ENVIRONMENT := $(VENV)/.environment
EXTENSION := $(VENV)/.extension
EMULATORS := .emulators/.environment
# What the core is measured by. Go and Node are no prerequisites: without them their rows stay empty.
PEERS := target/peers/python/.environment target/peers/rust/release/peers
PEERS += $(if $(shell command -v go 2>/dev/null),target/peers/go/peers)
PEERS += $(if $(shell command -v npm 2>/dev/null),bench/peers/node/node_modules/.package-lock.json)
KAFKA := .kafka/.jars
KAFKA_POM := python/replicator/testing/kafka.pom.xml
LIBRARY := python/replicator/_core.abi3.so
RUST := Cargo.toml Cargo.lock $(shell find rust -path rust/fuzz -prune -o -type f -print 2>/dev/null)

# Cargo finds the interpreter of the environment, not another that happens to be in PATH.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

# What `replicator --version` names; the core takes it in when it is compiled (option_env!).
export BUILD_COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)

.PHONY: help setup build lint test bench soak fuzz demo format requirements clean FORCE

help: ## Lists the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(KAFKA) $(ENVIRONMENT) $(EXTENSION) $(EMULATORS) ## Makes both environments, the extension and the tests' Kafka: all that the other verbs need

build: $(EXTENSION) ## Builds the release extension and a wheel in dist/
	$(need)
	$(BIN)/maturin build --release --locked --quiet --out dist

lint: $(EXTENSION) ## Formats, types, stub, layers, clippy: changes nothing
	$(need)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest replicator._core
	$(BIN)/lint-imports --no-logo
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --no-default-features -- -D warnings

# Each process starts servers of its own: more than four would fill the memory of a laptop.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

test: $(KAFKA) $(EXTENSION) $(EMULATORS) ## Tests of the core and of the product; ARGS go to pytest
	$(need)
	cargo test --locked --release --no-default-features
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

bench: $(EXTENSION) $(PEERS) ## Ratios measured side by side; ARGS="core|scale|ingest|… --output json|markdown --quick"
	@$(BIN)/python -m bench.run $(ARGS)

soak: $(EXTENSION) ## An hour at full mischief into Postgres, compared in the end; ARGS="--minutes 5 --output json"
	@$(BIN)/python -m bench.soak $(ARGS)

fuzz: $(ENVIRONMENT) ## Fuzzes the core with a nightly compiler and cargo-fuzz; ARGS="kinesis_record 600" (seconds)
	@$(BIN)/python rust/fuzz/run.py $(ARGS)

demo: $(EXTENSION) $(EMULATORS) $(if $(filter kafka,$(SINK)),$(KAFKA)) ## A supermarket's table arrives in Postgres; SINK=kafka|s3|cratedb, SOURCE=streams|polling, ARGS="--seconds 20 --rate 500 --keep"
	@$(BIN)/replicator demo $(if $(SOURCE),--source $(SOURCE)) $(if $(SINK),--sink $(SINK)) $(ARGS)

format: $(ENVIRONMENT) ## Formats Python and Rust
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	cargo fmt

COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

requirements: $(ENVIRONMENT) ## Compiles requirements*.in anew: the newest allowed versions, pinned with hashes
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) requirements.in --output-file requirements.txt
	$(COMPILE) requirements-build.in --output-file requirements-build.txt
	$(COMPILE) requirements-dev.in --output-file requirements-dev.txt --constraints requirements.txt --constraints requirements-build.txt
	$(COMPILE) requirements-bench.in --output-file requirements-bench.txt
	$(COMPILE) requirements-emulators.in --output-file requirements-emulators.txt

clean: ## Removes what the verbs made
	rm -rf $(VENV) .emulators .kafka target dist $(LIBRARY)
	rm -rf bench/peers/node/node_modules
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find python tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# What is made. Everything here says its noise on stderr: stdout belongs to the verbs.

$(ENVIRONMENT): requirements-dev.txt
	$(need)
	@echo "making $(VENV) (some seconds, once)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv --clear $(VENV) >&2
	@$(PIP) -r requirements-dev.txt >&2
	@touch $@

# The stamp lives in the environment that the extension is installed in, so it dies with it.
$(EXTENSION): $(ENVIRONMENT) pyproject.toml $(RUST) $(if $(wildcard $(LIBRARY)),,FORCE)
	$(need)
	@echo "building the extension (about a minute the first time)" >&2
	@PATH="$(CURDIR)/$(BIN):$$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable . >&2
	@touch $@

$(EMULATORS): requirements-emulators.txt
	$(need)
	@echo "making .emulators (some seconds, once)" >&2
	@test -x .emulators/bin/python || $(PYTHON) -m venv --clear .emulators >&2
	@PIP_DISABLE_PIP_VERSION_CHECK=1 .emulators/bin/python -m pip install --quiet --require-hashes -r requirements-emulators.txt >&2
	@touch $@

target/peers/python/.environment: requirements-bench.txt
	@echo "installing the Python peers (some seconds, once)" >&2
	@test -x $(@D)/bin/python || $(PYTHON) -m venv --clear $(@D) >&2
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(@D)/bin/python -m pip install --quiet --require-hashes -r requirements-bench.txt >&2
	@touch $@

target/peers/rust/release/peers: bench/peers/rust/Cargo.toml bench/peers/rust/Cargo.lock $(wildcard bench/peers/rust/src/*)
	@echo "building the Rust peers (half a minute, once)" >&2
	@cargo build --release --locked --quiet --manifest-path bench/peers/rust/Cargo.toml --target-dir target/peers/rust >&2
	@touch $@

target/peers/go/peers: bench/peers/go/main.go bench/peers/go/go.mod bench/peers/go/go.sum
	@echo "building the Go peers (half a minute, once)" >&2
	@cd $(<D) && go build -o $(CURDIR)/$@ . >&2
	@touch $@

bench/peers/node/node_modules/.package-lock.json: bench/peers/node/package.json bench/peers/node/package-lock.json
	@echo "installing the Node peer (some seconds, once)" >&2
	@cd $(<D) && npm ci --ignore-scripts --no-audit --no-fund --silent >&2
	@touch $@

# Only the tests need it, and only they need Java.
$(KAFKA): $(KAFKA_POM)
	$(need_java)
	@echo "making .kafka (some seconds, once)" >&2
	@rm -rf .kafka
	@mvn --batch-mode --quiet --strict-checksums --file $(KAFKA_POM) dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/.kafka >&2
	@touch $@
