# The two commands: `make test` and `make demo`. Each does all its set-up on a fresh Debian or Ubuntu with cargo.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help test demo build

target := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(target)
export CARGO_TERM_PROGRESS_WHEN := never

help:
	@echo 'make demo   a tunnel to a throw-away PostgreSQL through a fake AWS, on this machine alone'
	@echo 'make test   everything that is checked: format, lints, tests, documentation, licences'

# The examples are named for what they bring along: with them, cargo resolves the same features for the programs, the
# tests, the lints and the documentation, so that no dependency is compiled twice.
build:
	cargo build --workspace --locked --bins --examples

test:
	@scripts/setup test
	cargo fmt --all --check
	scripts/deny
	cargo clippy --workspace --locked --all-targets -- --deny warnings
	@$(MAKE) --no-print-directory build
	cargo test --workspace --locked
	RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --locked --no-deps --lib --examples --bin tunnelctl

demo:
	@scripts/setup demo
	@$(MAKE) --no-print-directory build
	@demo/run
