# SPDX-License-Identifier: Apache-2.0
# make demo    everything from nothing on Debian 12: packages, environment, build, then the demonstration
# make test    the same set-up, then every check and test, and make fuzz
# make bench   side-by-side timings against public meters (BENCH='--only live' for one table; all figures: bench/run.py)
# make soak    live capture for SOAK_SECONDS: exact totals, no growth in memory (needs root)
# make attack  every named attack on a fleet of real processes, each refused with its own reason (ATTACK='--only replay')
# make returning  2,000 agents that dial come back at once; one that is attested keeps its lease and loses no record
# make fuzz    every fuzz target for FUZZ_SECONDS each
# make help    this list

PYTHON ?= python3
FUZZ_SECONDS ?= 10
SOAK_SECONDS ?= 600
SOAK ?=
ATTACK ?=
BENCH ?=
JOBS ?= $(shell nproc)
PYTEST_WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
FIRMWARE := $(VENV)/lib/jarvis-capture
RELEASE_KEY := build/release-key/release.pem
RELEASE_ROOT := build/release-key/root.json
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
NATIVE_SOURCES := $(shell find native -name '*.[ch]' -o -name CMakeLists.txt -o -name '*.in')

.PHONY: help setup demo test lint test-c test-python bench soak returning attack fuzz proto clean
.DELETE_ON_ERROR:

help:
	@sed -n '2,9s/^# //p' Makefile

# --- set-up -------------------------------------------------------------------------------------------------------------

setup: build/.debian $(FIRMWARE)/manifest.sig

build/.debian: tools/debian-packages.txt tools/install-debian-packages
	@mkdir -p build
	tools/install-debian-packages tools/debian-packages.txt
	@touch $@

$(BIN)/python: | build/.debian
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'

# Editable: Python changes are in force at once, changes of the native core at the next make.
build/.installed: pyproject.toml $(NATIVE_SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --group checks --group test --group proto --editable '.[agent,controller,arrow]'
	@touch $@

# A developer's release key signs what was built here; a release is signed elsewhere, with a key that never leaves its owner.
$(RELEASE_KEY): | build/.installed
	@mkdir -p $(@D)
	$(BIN)/jarvisctl firmware keygen --private $@ --public $(basename $@).pub

$(RELEASE_ROOT): $(RELEASE_KEY)
	@rm -f $@
	$(BIN)/jarvisctl firmware root init --key $(basename $(RELEASE_KEY)).pub --threshold 1 $@
	$(BIN)/jarvisctl firmware root sign --key $(RELEASE_KEY) $@

$(FIRMWARE)/manifest.sig: build/.installed $(RELEASE_ROOT)
	$(BIN)/jarvisctl firmware sign --key $(RELEASE_KEY) --version $(VERSION) $(FIRMWARE)/libjarvis_capture*.so
	cp $(RELEASE_ROOT) $(FIRMWARE)/root.json

# --- use ----------------------------------------------------------------------------------------------------------------

demo: setup
	$(BIN)/python -m testbed.demo

test: build/.debian-test setup lint test-c fuzz test-python

# Backend dpdk is optional: the tests exercise it, setup and demo do without its 212 packages. What was built before is built anew
# with it.
build/.debian-test: tools/debian-packages-test.txt tools/install-debian-packages
	@mkdir -p build
	tools/install-debian-packages tools/debian-packages-test.txt
	rm -f build/.installed
	@touch $@

lint:
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-c:
	cmake -S native -B build/c-plain -G Ninja -Wno-dev
	cmake --build build/c-plain -j$(JOBS)
	ctest --test-dir build/c-plain --output-on-failure -j$(JOBS)
	CC=clang-14 cmake -S native -B build/c-asan -G Ninja -Wno-dev -DJARVIS_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=Debug
	cmake --build build/c-asan -j$(JOBS)
	ctest --test-dir build/c-asan --output-on-failure -j$(JOBS)
	CC=clang-14 cmake -S native -B build/c-tsan -G Ninja -Wno-dev -DJARVIS_SANITIZE=thread
	cmake --build build/c-tsan -j$(JOBS)
	ctest --test-dir build/c-tsan -L threads --output-on-failure -j$(JOBS)

# Fleets of real processes wait for each other more than they compute: files of tests run side by side.
test-python:
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile

# As for the tests: backend dpdk is built anew where its library comes only now.
build/.debian-bench: tools/debian-packages-bench.txt tools/install-debian-packages
	@mkdir -p build
	dpkg-query -W dpdk-dev >/dev/null 2>&1 || rm -f build/.installed
	tools/install-debian-packages tools/debian-packages-bench.txt
	@touch $@

build/.installed-bench: pyproject.toml | setup
	$(BIN)/pip install --quiet --group bench
	@touch $@

bench: build/.debian-bench setup build/.installed-bench
	$(BIN)/python -m bench.run $(BENCH)

soak: setup
	$(BIN)/python -m testbed.soak --seconds $(SOAK_SECONDS) $(SOAK)

returning: setup
	JARVIS_RETURNING_AGENTS=2000 $(BIN)/pytest -q --timeout 1200 tests/integration/test_controller_tunnel.py -k come_back_at_once

attack: setup
	$(BIN)/python -m testbed.attack $(ATTACK)

# New inputs go to build/fuzz-corpus/ and are used by the next run; libFuzzer only reads the directories named after that: the test
# captures for fuzz_file, their frames for fuzz_decode, signed messages for those of leases, commands and requests.
fuzz: build/.debian
	$(PYTHON) native/fuzz/make_seeds.py build/fuzz-seeds tests/data/*.pcap
	$(PYTHON) native/fuzz/make_signed_seeds.py build/fuzz-signed-seeds
	CC=clang-14 cmake -S native -B build/c-fuzz -G Ninja -Wno-dev -DJARVIS_FUZZ=ON -DJARVIS_TESTS=OFF -DJARVIS_SANITIZE=address,undefined
	cmake --build build/c-fuzz -j$(JOBS)
	for target in build/c-fuzz/fuzz_*; do [ -f $$target ] && [ -x $$target ] || continue; \
	    name=$${target##*/}; seeds=; [ $$name != fuzz_file ] || seeds=tests/data; \
	    [ $$name != fuzz_decode ] || seeds=build/fuzz-seeds; \
	    [ ! -d build/fuzz-signed-seeds/$$name ] || seeds=build/fuzz-signed-seeds/$$name; mkdir -p build/fuzz-corpus/$$name; \
	    echo "== $$target"; $$target -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -artifact_prefix=build/fuzz-corpus/ \
	        build/fuzz-corpus/$$name $$seeds || exit 1; done

proto:
	proto/generate $(CURDIR)/$(BIN)/python

clean:
	rm -rf build $(VENV)
