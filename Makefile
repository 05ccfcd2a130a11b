# The commands: `make test`, `demo`, `soak`, `bench`. Each does all its set-up on a fresh Debian or Ubuntu with cargo.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help test demo soak bench build

target := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(target)
export CARGO_TERM_PROGRESS_WHEN := never

help:
	@echo 'make demo   a tunnel to a throw-away PostgreSQL through a fake AWS, on this machine alone'
	@echo 'make test   everything that is checked: format, lints, tests, documentation, licences'
	@echo 'make soak   random faults under load, and hostile clients, for as long as: make soak SOAK=10m'
	@echo 'make bench  figures and their goals, beside other clients; roughly: make bench BENCH=--quick'

# The examples are named for what they bring along: with them, cargo resolves the same features for the programs, the
# tests, the lints and the documentation, so that no dependency is compiled twice.
build:
	cargo build --workspace --locked --bins --examples

# A line for each test that this machine could not do.
skipped := $(target)/skipped

test:
	@scripts/setup test
	cargo fmt --all --check
	cargo fmt --manifest-path bench/Cargo.toml --all --check
	scripts/deny
	cargo clippy --workspace --locked --all-targets -- --deny warnings
	@$(MAKE) --no-print-directory build
	@mkdir -p '$(target)' && : >'$(skipped)'
	TUNNELD_SKIPPED='$(skipped)' cargo test --workspace --locked --no-fail-fast; passed=$$?; \
	if [[ -s '$(skipped)' ]]; then echo "$$(wc -l <'$(skipped)') tests were skipped:"; cat '$(skipped)'; fi; \
	exit $$passed
	RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --locked --no-deps --lib --examples --bin tunnelctl

demo:
	@scripts/setup demo
	@$(MAKE) --no-print-directory build
	@demo/run

# How long `make soak` goes on.
SOAK = 10m

soak:
	@scripts/setup test
	@$(MAKE) --no-print-directory build
	SOAK='$(SOAK)' cargo test --workspace --locked --test e2e -- chaos hostile --nocapture

# What to measure and how, as `bench-harness --help` says: BENCH='--quick download upload'
BENCH =
BENCH_JSON = $(target)/bench.json

# Both workspaces build into one folder, where the harness finds the programs beside itself.
bench:
	@scripts/setup bench
	cargo build --locked --profile measured --package tunneld --package tunnelctl --package tunneld-emulator --bins
	cargo build --locked --profile measured --manifest-path bench/Cargo.toml
	@'$(target)/measured/bench-harness' --json '$(BENCH_JSON)' $(BENCH)
