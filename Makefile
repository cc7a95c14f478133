# `make` alone says what there is. Each target does one thing a person would ask for;
# the how stands in scripts/ and in the binary itself.

.DEFAULT_GOAL := help
.PHONY: help setup build demo demo-build test chaos bench lint fmt

BINARY := target/release/ticketping

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing to build and run (says what and why first)
	@scripts/setup

build: ## The release binary, target/release/ticketping
	cargo build --release

demo: setup demo-build ## A whole sale on this machine: stores, server, demo data; Ctrl-C ends it
	@exec $(BINARY) serve all --demo

demo-build:
	@[ -x $(BINARY) ] || echo 'demo: the first build of everything takes about 5 minutes on two processors; then the sale opens'
	@cargo build --release

test: ## Every test, against real Redis, PostgreSQL, Kafka and stripe-mock
	@scripts/test

bench: ## The budgets, measured [ONLY=poll,entry] [QUICK=1] [FULL=1]: docs/performance.md
	@scripts/bench $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(FULL),--full)

chaos: ## Whole sales while everything is killed at random, then the audit; prints each round
	@TICKETPING_CHAOS_ROUNDS=$${TICKETPING_CHAOS_ROUNDS:-5} \
		scripts/test --test it chaos:: -- --nocapture --test-threads=1

lint: ## Format check and clippy, warnings as errors
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

fmt: ## Format the code
	cargo fmt
