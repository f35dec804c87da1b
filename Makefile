# What people and CI call. Everything that `make test` needs and the machine lacks is installed by tests/setup/setup.sh.

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
NOT_RUN := $(TARGET_DIR)/walpoint-not-run
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: help build dist dist-check image demo unit test-bed test soak mutants bench lint clean

help:
	@echo "make build   the four programs, optimised, in $(TARGET_DIR)/release"
	@echo "make dist    the same for release: static, reproducible, in $(TARGET_DIR)/dist-out"
	@echo "make image   the sidecar's image from that, by BUILDER (docker build)"
	@echo "make dist-check  build the last commit twice and compare the bytes"
	@echo "make demo    a PostgreSQL server under load loses a table and gets it back (MAJOR=19 for another version than 17)"
	@echo "make unit    the unit tests of all crates: no server is needed"
	@echo "make test    install the servers the tests need, build, run all tests"
	@echo "make soak    the long tests too"
	@echo "make mutants plant faults and show which test finds each"
	@echo "make bench   measure beside other tools, write bench/RESULTS.md (an hour; ROWS=archive-s3,fetch-s3 for some)"
	@echo "make schemas  write docs/schema anew from what the commands print"
	@echo "make lint    format, clippy, documentation, dependencies, layers, circles, options in libraries"
	@echo "make clean   remove everything built"

build:
	$(CARGO) build --release --workspace

dist:
	docker/dist.sh $(TARGET_DIR)/dist-out

# The sidecar's image from what `make dist` made; BUILDER is any program that builds Dockerfiles.
BUILDER ?= docker build
image: dist
	docker/root.sh $(TARGET_DIR)/dist-out target/image
	$(BUILDER) --file docker/Dockerfile --target prebuilt --tag walpoint .

dist-check:
	docker/dist-check.sh

# One PostgreSQL is all the demonstration needs: 13 to 19.
MAJOR ?= 17
demo: build
	@tests/setup/setup.sh --only pg$(MAJOR)
	MAJOR=$(MAJOR) tests/setup/demo.sh $(abspath $(TARGET_DIR))/release

test-bed:
	@tests/setup/setup.sh

# A profile of .config/nextest.toml.
PROFILE ?= default

# Random cases are the same ones each time: what fails here fails because of a change. make soak draws others, and prints them.
unit test: export PROPTEST_RNG_SEED ?= 20261124
unit test: export WALPOINT_MODEL_FIRST ?= 20261124

# One build serves all tests, those in containers included.
test soak: export RUSTC_WORKSPACE_WRAPPER ?= $(abspath tests/setup/static-link.sh)

# For every change: nothing is installed, and no server is started.
unit:
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --workspace --lib --bins --profile $(PROFILE)
else
	@echo "cargo-nextest is not installed: the tests run by cargo test, slower" >&2
	$(CARGO) test --workspace --lib --bins --no-fail-fast
endif

# The harness starts the programs under test from the target directory, so the whole workspace is built first.
test: test-bed
	@rm -f $(NOT_RUN)
	$(CARGO) build --workspace
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --workspace --profile $(PROFILE)
else
	@echo "cargo-nextest is not installed: the tests run by cargo test, slower" >&2
	$(CARGO) test --workspace --no-fail-fast
endif
	@$(MAKE) --no-print-directory not-run

.PHONY: not-run
not-run:
	@if [ -s $(NOT_RUN) ]; then sed 's/^/not run: /' $(NOT_RUN); fi
	@echo "not run: $$( [ -f $(NOT_RUN) ] && wc -l <$(NOT_RUN) || echo 0 ) (needs root)"

soak: test-bed
	@rm -f $(NOT_RUN)
	$(CARGO) build --workspace
ifeq ($(NEXTEST),yes)
	WALPOINT_SOAK=1 $(CARGO) nextest run --workspace --profile soak --run-ignored all
else
	WALPOINT_SOAK=1 $(CARGO) test --workspace --no-fail-fast -- --include-ignored
endif
	@$(MAKE) --no-print-directory not-run

# What no test finds is not tested. Builds a copy of the last commit in a directory of its own.
mutants: test-bed
	tests/setup/mutants.sh

# The peers are installed where that is possible; who is missing is named in the results. Ours is measured as it is released.
bench: dist
	@tests/setup/setup.sh --only pg15,weed,pgbackrest,barman
	$(CARGO) build --release --workspace
	$(TARGET_DIR)/release/walpoint-bench run --released $(TARGET_DIR)/dist-out $(if $(ROWS),--only $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_ARGS)
	tests/setup/readme-figures.py

# One for each document that a command prints, from its type. The same tests compare them otherwise.
.PHONY: schemas
schemas:
	WALPOINT_WRITE_SCHEMAS=1 $(CARGO) test --quiet --workspace --lib --bins document_schema

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet
	tests/setup/check-dependencies.sh
	tests/setup/check-words.py
	tests/setup/readme-figures.py --check
	@if command -v git >/dev/null; then git apply --check tests/mutants/*.patch; else echo "no git: the mutants were not tried" >&2; fi
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --offline check bans licenses sources; \
	else \
		echo "cargo-deny is not installed: licenses and sources were not checked" >&2; \
	fi

clean:
	$(CARGO) clean
