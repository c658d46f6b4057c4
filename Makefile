# Two commands for a user (demo, test), some more for who works on it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-down test check bench chaos lab lab-down packages build apps lab-tests browser-tests vagrant-validate

# `make demo PROFILE=dev` takes what the tests have built already.
PROFILE ?= release
MATRIX := target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/matrix
# Namespaces and mounts are root's: everything is built as you, and only what needs it runs as root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
AS_ROOT := $(if $(SUDO),--config 'target."cfg(unix)".runner="$(SUDO)"')
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)

# The same cases on every run; another seed, or none, looks elsewhere: PROPTEST_RNG_SEED=7 make check
export PROPTEST_RNG_SEED ?= 1

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## */\1\t/p' Makefile | expand -t 20

demo: build apps ## a cloud on this machine: three nodes, two applications, one node lost, still answering
	$(SUDO) vm/demo.sh $(MATRIX)

demo-down: ## remove the demo's cloud
	$(SUDO) $(firstword $(wildcard $(MATRIX) target/*/matrix)) lab --name demo down

test: packages check lab-tests browser-tests vagrant-validate ## everything, from a bare Debian 12 on

check: ## format, lints, unit, property, snapshot and VCL tests: the inner loop, no root
	cargo fmt --check
	cargo clippy --all-targets -q -- -D warnings
ifeq ($(NEXTEST),yes)
	cargo nextest run --no-fail-fast -E 'kind(lib) or kind(bin) or binary(it)'
else
	cargo test -q --lib --bins --test it
endif

bench: packages ## the figures, ours beside others', one a line (root; about ten quiet minutes)
	cargo build -q --release --example hello
	cargo $(AS_ROOT) bench -q --bench figures

chaos: packages apps ## everything breaks under load, 15 minutes: SEED=n, ROUNDS=n, MINUTES=n, ROUND=k for one alone (root)
	$(IN_MEMORY) cargo $(AS_ROOT) test -q --test chaos -- --ignored --nocapture

lab: build ## a lab of three nodes, to try things
	$(SUDO) $(MATRIX) lab up

lab-down: ## remove that lab
	$(SUDO) $(firstword $(wildcard $(MATRIX) target/*/matrix)) lab down

packages: ## install what the tests need and this machine lacks
	@vm/provision/packages.sh test

build: ## install what a lab needs, build the program
	@vm/provision/packages.sh run
	cargo build -q --profile $(PROFILE)

apps: ## the example applications' program
	vm/apps/build

# The labs of tests live in memory where there is enough of it: some disks take longer to delete images than the tests.
SHM := $(shell [ "$$(df -k --output=avail /dev/shm | tail -1)" -gt 6000000 ] && ! findmnt -no OPTIONS /dev/shm | grep -q noexec && echo yes)

IN_MEMORY := $(if $(SHM),MATRIX_LAB_DIR=/dev/shm/matrix-lab)

lab-tests: apps ## end to end, on labs, and a short round of chaos (root)
	$(IN_MEMORY) cargo $(AS_ROOT) test -q --test lab -- --test-threads=1
	$(IN_MEMORY) cargo $(AS_ROOT) test -q --test chaos -- --nocapture

browser-tests: ## the page in a headless Chromium
	cargo test -q --test browser -- --test-threads=1

vagrant-validate: ## the Vagrantfile
	@if command -v vagrant >/dev/null; then cd vm && home=$$(mktemp -d) && VAGRANT_HOME=$$home vagrant validate --ignore-provider; \
	status=$$?; rm -rf $$home; exit $$status; else echo "vagrant is not here: its file is not checked"; fi
