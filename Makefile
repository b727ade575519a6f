# One word a task. Each sets up what it needs: a virtual environment in .venv, with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo test slow lint types bench clean

demo: .venv/demo.stamp
	$(BIN)/roundelay run examples/digits/job.toml

test: .venv/dev.stamp
	$(BIN)/python -m pytest --numprocesses auto

slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/mypy

bench: .venv/dev.stamp
	$(BIN)/python benchmarks/simulation.py compare
	$(BIN)/python benchmarks/wire.py
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python benchmarks/cell.py
	$(BIN)/python benchmarks/scripts.py
	$(BIN)/python benchmarks/deployment.py
	$(BIN)/python benchmarks/ray_overhead.py

clean:
	rm -rf .venv build dist src/*.egg-info

.venv/made.stamp:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo.stamp: .venv/made.stamp pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	touch $@

.venv/dev.stamp: .venv/made.stamp pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	touch $@ .venv/demo.stamp
