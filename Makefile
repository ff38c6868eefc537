# Sandbank: the two commands are `make up` and `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
# Where `make up` keeps its data; empty: the binary's default.
DATA_DIR ?=
LISTEN ?=

.PHONY: help up build test lint fmt bench deny clean

help: ## Show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

build: ## Build the release binary
	@$(CARGO) build --release --locked -p sandbank-server

up: build ## Build, show a claimed sandbox running a program, and serve until Ctrl-C
	@exec $(TARGET_DIR)/release/sandbank up --demo $(if $(DATA_DIR),--data-dir '$(DATA_DIR)') $(if $(LISTEN),--listen '$(LISTEN)')

test: ## Everything: formatting, lints, all tests, a schema-driven fuzzer, and a check that nothing is left behind
	@exec tests/run

lint: ## Formatting and lints alone
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

fmt: ## Format the sources
	@$(CARGO) fmt --all

bench: ## Measure on this machine, as docs/benchmarks.md shows (takes minutes)
	@$(CARGO) build --release --locked -p sandbank-server -p sandbank-bench
	@exec $(TARGET_DIR)/release/sandbank-bench all

deny: ## Licences, advisories and duplicates of the dependencies (needs cargo-deny)
	@$(CARGO) deny check

clean: ## Remove what was built
	@$(CARGO) clean
	@rm -rf .venv .pytest_cache .hypothesis tests/python/__pycache__
