# Spokeshave. `make demo` and `make test` are the whole set-up; everything else builds on the same environment.
# Settings: PYTHON (3.11 or newer), KEEP=1 (leave the demo running), TESTS (what `make test` runs), WORKERS (test processes).

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
TESTS   ?= tests
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
TORCH   := $(shell sed -n '/^torch==/p' constraints.txt)
PIP     := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench cpus fuzz sweep docs clean mosquitto others

help:  ## Show what can be made.
	@sed -n 's/^\([a-z]*\):.*##/  make \1	/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(READY) mosquitto  ## The whole story on real data, from nothing; KEEP=1 leaves it running.
	$(BIN)/python -m examples.demo $(if $(KEEP),--keep)

test: $(READY) mosquitto others  ## Everything: checks, units, contracts, attacks, crashes, end to end.
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(TESTS)

check: $(READY)  ## ruff, mypy strict, import-linter.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(READY)  ## Format, and mend what can be mended by machine.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) mosquitto  ## Tables and build/bench/*.json, peers beside us in the same run.
	$(BIN)/python -m tests.bench

cpus: $(READY) mosquitto others  ## Every example model and a whole spoke on classes of CPU that this machine is not, by qemu (half an hour).
	$(BIN)/python -m tests.cpus

fuzz: $(READY)  ## Throw bytes at the parsers of requests for three minutes (atheris).
	@$(PIP) -e '.[fuzz]'
	for target in request grpc http; do $(BIN)/python -m tests.fuzz $$target 60 || exit 1; done

sweep: $(READY)  ## Cut the power at every write of an update (minutes).
	$(BIN)/python -m tests.crash.sweep

docs: $(READY)  ## Generate docs/reference from the code.
	$(BIN)/python -m docs.generate

clean:  ## Remove the environment and all that was built.
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Spokeshave needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || .ci/apt python3-venv
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time; torch first, the CPU build where there is one) ..."
	@$(PIP) --upgrade pip
	@$(PIP) $(TORCH)
	@$(PIP) -e '.[dev]'
	@touch $@

mosquitto:
	@command -v mosquitto >/dev/null || test -x /usr/sbin/mosquitto || .ci/apt mosquitto

# What other people's programs are tested against. Where they may not be installed, those tests are skipped.
others:
	@for one in skopeo:skopeo docker-registry:docker-registry softhsm2-util:softhsm2 ip:iproute2 strace:strace qemu-x86_64-static:qemu-user-static; do \
	  command -v $${one%:*} >/dev/null || .ci/apt $${one#*:} || echo "Tests with $${one#*:} will be skipped." >&2; done
