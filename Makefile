# Two commands matter: `make retrain` and `make test`. Both set up what is missing.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export DVC_SITE_CACHE_DIR := $(CURDIR)/.stillmark/dvc

.PHONY: retrain test lint types contracts tests test-slow soak benchmarks figures data litert-env lock clean

retrain: $(READY)
	test -d data || $(BIN)/dvc pull --quiet
	$(BIN)/stillmark retrain

test: lint types contracts tests

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/basedpyright

contracts: $(READY)
	$(BIN)/lint-imports

tests: $(READY)
	$(BIN)/dvc pull --quiet
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/pytest -m slow --timeout 3600

# 50 scheduled retrainings with growing data and kills; about an hour.
soak: $(READY)
	$(BIN)/python -m tests.soak --cycles 50 --out tests/benchmarks/results/soak.json

benchmarks: $(READY)
	$(BIN)/pytest -m benchmark --timeout 3600

# The figures in README.md, written anew.
figures: $(READY)
	$(BIN)/python -m tests.benchmarks.digits --out tests/benchmarks/results/digits.json
	$(BIN)/python -m tests.benchmarks.throughput --out tests/benchmarks/results/throughput.json

# After a change to data/, to prepare's parameters or to its code: new version, into the remote.
data: $(READY)
	$(BIN)/dvc add --quiet data
	$(BIN)/dvc repro
	$(BIN)/dvc push

# LiteRT's converter drags old pins in, so it lives apart: STILLMARK_LITERT_PYTHON=.litert/bin/python
litert-env:
	$(PYTHON) -m venv .litert
	.litert/bin/pip install --quiet 'litert-torch>=0.10,<0.11'

# Pins for Python 3.11 to 3.13 on every platform, from the ranges in pyproject.toml.
lock: $(READY)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --no-header --no-annotate \
		--output-file requirements.lock pyproject.toml

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .stillmark prepared mlflow.db mlflow.db-* build *.egg-info
