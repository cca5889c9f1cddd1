# What one does with a checkout. `make` shows it.

LIVEMOUNT_CACHE ?= $(HOME)/.cache/livemount
LIVEMOUNT_HOME ?= /var/lib/livemount
export LIVEMOUNT_CACHE LIVEMOUNT_HOME
export CARGO_TARGET_DIR := $(LIVEMOUNT_CACHE)/cargo-target
export PYO3_PYTHON := $(CURDIR)/.venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(LIVEMOUNT_CACHE)/pulumi-bin:$(LIVEMOUNT_CACHE)/rust/cargo/bin:$(HOME)/.cargo/bin:$(PATH)
ifneq ($(wildcard $(LIVEMOUNT_CACHE)/rust/rustup),)
export RUSTUP_HOME := $(LIVEMOUNT_CACHE)/rust/rustup
export CARGO_HOME := $(LIVEMOUNT_CACHE)/rust/cargo
endif

CARGO_FLAGS := --manifest-path native/Cargo.toml --workspace --locked
PYTEST_FLAGS ?= --durations=10
PYTEST_JOBS ?= 2
# A test of kills and clocks that fails on a loaded machine is tried once more; the end says which, and why it failed.
PYTEST_RETRY ?= --reruns 1
STEP = @printf '==> %s\n'

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint lint-python lint-native lock clean

help: ## show this
	@awk -F ': *.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: packages, .venv, native extension, Pulumi, iPXE (quick when nothing is)
	@setup/run

demo: setup ## back up a real guest, boot it from the copy, prove it, leave nothing
	$(STEP) 'demo'
	@python -m demo

test: setup lint ## everything: lint, types, all tests (root; boots guests)
	$(STEP) 'pytest, all, in $(PYTEST_JOBS) processes'
	@python -m pytest --numprocesses $(PYTEST_JOBS) --no-loadscope-reorder $(PYTEST_RETRY) $(PYTEST_FLAGS)

test-fast: ## Python's unit tests only: seconds, no root
	@python -m pytest tests/unit $(PYTEST_FLAGS)

lint: lint-python lint-native ## ruff, mypy, rustfmt, clippy

lint-python:
	$(STEP) 'ruff check'
	@ruff check .
	$(STEP) 'ruff format'
	@ruff format --check .
	$(STEP) 'mypy'
	@mypy

lint-native:
	$(STEP) 'cargo fmt'
	@cargo fmt --manifest-path native/Cargo.toml --all --check
	$(STEP) 'clippy'
	@cargo clippy $(CARGO_FLAGS) --release --quiet --all-targets -- -D warnings

lock: ## write setup/*.txt anew from pyproject.toml (ARGS=--upgrade for newer versions)
	@python -m pip install --quiet pip-tools
	@python setup/lock $(ARGS)

clean: ## remove what setup and tests made in this checkout (not the cache); refuses while environments run from it
	@used=$$(grep -lsF '$(CURDIR)/.venv/' '$(LIVEMOUNT_HOME)'/*/host/etc/services/*.conf \
		/etc/systemd/system/livemount-*.service | head -n 1); \
	if [ -n "$$used" ]; then \
		echo "an environment runs from this checkout ($$used): end its mounts and run 'pulumi destroy' first" >&2; exit 1; \
	fi
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis livemount/_native*.so native/target
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
