# One word a task. Each sets up what it needs: a virtual environment in .venv, with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo test slow chaos lint types bench bench-peers clean

demo: .venv/demo.stamp
	$(BIN)/roundelay run examples/digits/job.toml

test: .venv/dev.stamp
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow

# Faults, strangers and load at length, one test after the other; another SEED, other moments.
SEED ?= 0
chaos: .venv/dev.stamp
	ROUNDELAY_CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -m chaos

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/mypy

# Every script adds its bars to one file, which the last line prints: `make bench STRICT=--strict` fails where one is missed.
bench: export BENCH_BARS := $(CURDIR)/.bench-bars
bench: .venv/dev.stamp
	rm -f $(BENCH_BARS)
	$(BIN)/python benchmarks/simulation.py compare
	$(BIN)/python benchmarks/uneven.py
	$(BIN)/python benchmarks/aggregation.py
	$(BIN)/python benchmarks/population.py compare
	if [ -d .venv-peers ]; then $(BIN)/python benchmarks/peers/compare.py; fi
	$(BIN)/python benchmarks/wire.py
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python benchmarks/cell.py
	$(BIN)/python benchmarks/scripts.py
	$(BIN)/python benchmarks/deployment.py
	$(BIN)/python benchmarks/large_models.py
	$(BIN)/python benchmarks/ray_overhead.py
	$(BIN)/python benchmarks/bars.py $(BENCH_BARS) $(STRICT)

# Each peer in an environment of its own; from then on `make bench` has them beside roundelay.
bench-peers: .venv-peers/flower.stamp .venv-peers/pfl.stamp

clean:
	rm -rf .venv .venv-peers .bench-bars build dist src/*.egg-info

.venv/made.stamp:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo.stamp: .venv/made.stamp pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	touch $@

.venv/dev.stamp: .venv/made.stamp pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	touch $@ .venv/demo.stamp

.venv-peers/%.stamp: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	touch $@
