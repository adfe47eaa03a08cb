# The one door to the project. A fresh Debian machine with Python 3.11 and make is enough; `make test` also
# installs the peers it tests against (DCMTK, Orthanc, dicom3tools, PostgreSQL) where apt and root are there.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
# Processes that run tests: most of them wait for something, so that two take little more than half the time of one.
WORKERS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0

# program:package, each called by a test by its absolute path
PEERS := /usr/bin/storescu:dcmtk /usr/sbin/Orthanc:orthanc /usr/bin/dciodvfy:dicom3tools \
  /usr/bin/dcm2niix:dcm2niix /usr/bin/openssl:openssl /usr/bin/systemd-analyze:systemd /usr/lib/postgresql/*/bin/initdb:postgresql \
  /usr/bin/gcc:gcc /usr/include/dlfcn.h:libc6-dev /usr/bin/aiosmtpd:python3-aiosmtpd /usr/bin/xmllint:libxml2-utils \
  /usr/sbin/rsyslogd:rsyslog /usr/lib/*/rsyslog/lmnsd_ossl.so:rsyslog-openssl

.PHONY: help setup demo run test check fix bench layers train peers lock

help:
	@echo 'make demo    set up, then show a synthetic PET and MR go through the node; writes demo/'
	@echo 'make test    set up, install the peers, check, and run the whole suite; ARGS="-k word" narrows it, WORKERS=0 runs it in one process'
	@echo 'make run     the node with the defaults of config/dicomnode.example.toml, keeping its files in storage/'
	@echo 'make check   lint, format, types and import layers'
	@echo 'make fix     mend what lint and format can mend'
	@echo 'make bench   measure against the peers; ARGS="registration" picks groups, FULL=1 runs all cases'
	@echo 'make layers  the import rules alone'
	@echo 'make train   make the networks again from a folder of T1 volumes; DATA=folder, TORCH_INDEX=where torch comes from'
	@echo 'make lock    resolve requirements/*.lock again from pyproject.toml (needs uv)'

# --- the virtual environment, in steps so that each is done again only when what it reads has changed

$(STAMPS)/venv:
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo 'dicomnode needs Python 3.11 or newer: apt-get install python3, or make PYTHON=/path/to/python'; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    $(APT) update && $(APT) install -y --no-install-recommends python3-venv; \
	  else echo 'this Python cannot make a virtual environment: apt-get install python3-venv'; exit 1; fi; fi
	@[ -x $(BIN)/python ] || { echo 'set-up: making $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/runtime: requirements/build.lock requirements/runtime.lock | $(STAMPS)/venv
	@echo 'set-up: installing what the node needs'
	@$(PIP) --require-hashes -r requirements/build.lock -r requirements/runtime.lock
	@touch $@

$(STAMPS)/package: pyproject.toml | $(STAMPS)/runtime
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMPS)/dev: requirements/dev.lock | $(STAMPS)/package
	@echo 'set-up: installing what tests and checks need'
	@$(PIP) --require-hashes -r requirements/dev.lock
	@touch $@

$(STAMPS)/bench: requirements/bench.lock | $(STAMPS)/dev
	@echo 'set-up: installing the peers that registration is measured against'
	@$(PIP) --require-hashes -r requirements/bench.lock
	@touch $@

setup: $(STAMPS)/runtime $(STAMPS)/package $(STAMPS)/dev

peers:
	@missing=''; \
	for pair in $(PEERS); do compgen -G "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "set-up: installing the peers:$$missing"; \
	  $(APT) update && $(APT) install -y --no-install-recommends $$missing >/dev/null; \
	else echo "peers that are not here, so their tests are skipped:$$missing (apt-get install$$missing)"; fi

# --- what people come for

demo: $(STAMPS)/runtime $(STAMPS)/package
	@$(BIN)/dicomnode demo $(ARGS)

run: $(STAMPS)/runtime $(STAMPS)/package
	DICOMNODE_NODE__STORAGE_ROOT='$(CURDIR)/storage' $(BIN)/dicomnode serve --config config/dicomnode.example.toml $(ARGS)

test: peers check
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

layers: setup
	$(BIN)/lint-imports

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup peers $(STAMPS)/bench
	@$(BIN)/python -m tests.benchmarks $(ARGS)

# torch is not in the lock: its CPU and CUDA builds have one name. TORCH_INDEX is the index that has the one you want.
train: setup
	@[ -d '$(DATA)' ] || { echo 'make train DATA=folder: the folder of T1 volumes to train on is needed'; exit 2; }
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --no-build-isolation --editable '.[train]'
	for profile in default paper; do \
	  $(BIN)/python -m models.train --data '$(DATA)' --output models --profile $$profile; done

LOCK := uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --python-version 3.11
lock:
	printf 'hatchling>=1.27\neditables>=0.5\n' | $(LOCK) - -o requirements/build.lock
	$(LOCK) pyproject.toml -o requirements/runtime.lock
	$(LOCK) pyproject.toml --extra dev --extra postgres -c requirements/runtime.lock -o requirements/dev.lock
	$(LOCK) pyproject.toml --extra dev --extra bench -c requirements/dev.lock -o requirements/bench.lock
